"""`python -m erasure.cli` is the `erasure` command."""

from .main import main

main()
