"""The `erasure` command: its groups of commands, which read arguments, call the library and show results.

A module of commands imports the library inside its functions, so that `erasure --help` is quick.
"""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import ErasureError
from . import evaluate, export, ledger, look, personalize, remove, setup
from .console import fail


class _Group(TyperGroup):
    """Turn an error that a user can cause into one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except ErasureError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("Interrupted. Finished entries stay in the ledger; no file is half written.")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Remove concepts from a text-to-image diffusion model, one after another, and measure efficacy (the concepts"
    " are gone) and specificity (other concepts are kept).",
)
for _module in (remove, ledger, look, evaluate, export, personalize, setup):
    app.add_typer(_module.commands)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
