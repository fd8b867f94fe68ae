"""The command `python -m erasure.tinyworld.training`."""

import typer

from .command import main

typer.run(main)
