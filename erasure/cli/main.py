"""The `erasure` command: its groups of commands, which read arguments, call the library and show results.

A module of commands imports the library inside its functions, so that `erasure --help` is quick.
"""

import errno
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, cast

import typer
from typer.core import TyperGroup

from ..errors import ErasureError, ExportError, expectation, is_of_memory, reason
from ..io import interrupts
from ..io.files import dropping_empty_folders
from ..io.text import shortened
from . import evaluate, export, ledger, look, personalize, remove, setup
from .console import fail, show_error
from .options import CommandError


class _Group(TyperGroup):
    """Turn an error that a user can cause into one line on stderr and exit code 2; 1 if an export was not read back."""

    def main(  # pyright: ignore[reportIncompatibleMethodOverride] - typer passes what lies between by name
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **options: Any
    ) -> Any:
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **options)
        code: object = interrupts.EXIT_CODE
        try:
            code = super().main(args, standalone_mode=False, **options)
        except CommandError as error:
            _show_command_error(error)
        except (KeyboardInterrupt, typer.Abort):
            show_error(interrupts.MESSAGE)
        except Exception:
            if not interrupts.is_interrupted():
                raise
            show_error(interrupts.MESSAGE)
        interrupts.disarm()
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> object:
        try:
            with dropping_empty_folders():
                return super().invoke(ctx)
        except ErasureError as error:
            if interrupts.is_interrupted():
                raise KeyboardInterrupt from error
            fail(str(error), code=1 if isinstance(error, ExportError) else 2)
        except KeyboardInterrupt:
            fail(interrupts.MESSAGE)
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            fail(
                f"memory: expected enough for this work, got {shortened(reason(error))}. Lower the batch size or the"
                " image size, or use another --device."
            )
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone, which typer knows
                raise
            place = error.filename if error.filename is not None else "system"
            fail(f"{place}: expected files that can be used, got {error.strerror or reason(error)!r}. Check the path.")


def _show_command_error(error: Any) -> None:
    """Print the error of wrong arguments on one line; the help, if there are none at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    command = error.ctx.command_path if getattr(error, "ctx", None) is not None else "erasure"
    message = error.format_message()
    if message.endswith(error.message):
        message = message.removesuffix(error.message) + expectation(error.message)
    show_error(f"{message.rstrip('.')}. See `{command} --help`.")


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
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")  # text that the terminal's encoding lacks
    app()


if __name__ == "__main__":
    sys.exit(main())
