"""The `erasure` command: its groups of commands, which read arguments, call the library and show results.

A module of commands imports the library inside its functions, so that `erasure --help` is quick.
"""

import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from ..errors import ErasureError
from .console import fail
from .evaluate import attack, evaluate, scores
from .export import export
from .ledger import load_edit, log, replay, undo, verify
from .look import attention, compare, generate
from .options import ManyValues
from .personalize import forget, personalize
from .remove import remove
from .setup import doctor, methods, models, web


class _Group(TyperGroup):
    """Turn an error that a user can cause into one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ErasureError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("Interrupted. Whatever was finished before stands, nothing is half written.")


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Remove concepts from a text-to-image diffusion model, one after another, and see that they are gone and"
    " that the rest is not.",
)

GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Remove and undo": {
        "remove": remove,
        "log": log,
        "undo": undo,
        "verify": verify,
        "replay": replay,
        "load-edit": load_edit,
    },
    "Look": {"generate": generate, "compare": compare, "attention": attention},
    "Evaluate": {"evaluate": evaluate, "scores": scores, "attack": attack},
    "Export": {"export": export},
    "Personalise": {"personalize": personalize, "forget": forget},
    "Set-up": {"app": web, "methods": methods, "models": models, "doctor": doctor},
}

for _group, _commands in GROUPS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=ManyValues, rich_help_panel=_group)(_command)


def main() -> None:
    """Run the command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
