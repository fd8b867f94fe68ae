"""`python -m erasure` is the `erasure` command."""

from .cli import main

main()
