"""`python -m erasure.cli` is the `erasure` command, as `accelerate launch -m` needs it."""

from .main import main

main()
