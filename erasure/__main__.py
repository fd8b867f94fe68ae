"""`python -m erasure` is the `erasure` command."""

from .cli.main import main

main()
