"""Groups of commands, and the options and arguments that several commands share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from ..io.text import shortened

MOST_SEED = 2**63 - 1
"""Largest seed of a generator that is counted up from."""
LedgerFolder = Annotated[Path, typer.Argument(metavar="LEDGER", help="Folder of a ledger.")]
LedgerOrModel = Annotated[
    str,
    typer.Argument(metavar="LEDGER|MODEL", help="Folder of a ledger; or tinyworld, a diffusers folder or a Hub id."),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1, mps.")]
AttentionBy = Annotated[
    str, typer.Option("--attention", help="Implementation of attention: sdpa, or xformers on CUDA.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Prompts = Annotated[list[str], typer.Option("--prompt", metavar="TEXT ...", help="One or more prompts.")]
Seeds = Annotated[str, typer.Option(help="Seeds of the noise, as in 0,1,2 or 0-7; every prompt gets each.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Number of sampling steps; default: that of the model.")]
Guidance = Annotated[
    float | None, typer.Option(min=0, max=1000, help="Scale of classifier-free guidance; default: that of the model.")
]
Removed = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT ...",
        help="Concepts removed from a model; ledgers, edits and exports record their own.",
    ),
]
Original = Annotated[
    str | None,
    typer.Option(help="Model that MODEL was made from; default: tinyworld. A ledger records it."),
]
Siblings = Annotated[
    list[str] | None,
    typer.Option("--siblings", metavar="TEXT ...", help="Classes similar to the class; default: those of the world."),
]
ImagesEach = Annotated[
    int,
    typer.Option(
        "--measure-images", min=0, help="Images to measure of the instance in a composition, and of it alone; 0: none."
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option("--low-memory", help="Read weights one by one from the disk, on the CPU; no images are sampled."),
]
Link = Annotated[
    bool,
    typer.Option("--link", help="Make hard links to the base's files of weights that do not change, where they can."),
]


_NAMES = {
    "{attacks}": "erasure.eval.probes:attack_and_probe_names",
    "{budgets}": "erasure.runs.budgets:budget_names",
    "{benchmarks}": "erasure.eval.benchmarks:benchmark_names",
    "{erasers}": "erasure.erasers:eraser_names",
    "{probes}": "erasure.eval.probes:probe_names",
    "{guidance}": "erasure.pipelines.export.formats:GUIDANCES",
}


_PATHS = ("DIR", "FILE", "FILE.png", "OUT")
"""Metavars of options that take a path."""
CommandError = cast("type[Exception]", typer.BadParameter.__mro__[2])
"""Base of the errors that typer raises for wrong arguments; it has no public name."""


class LibraryCommand(TyperCommand):
    """A command with three additions.

    An option whose metavar ends with "..." takes several values: `--prompt "a cat" "a dog"`. The help of an option may
    hold a key of `_NAMES`; the names are looked up when the help of this command is shown, not at import. Errors name
    the value, and an option of a path (`_PATHS`) takes no empty text, which typer reads as the current folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [flag for option in self.params for flag in option.opts if (option.metavar or "").endswith("...")]
        spread = list(_repeated(args, flags))
        for option in self.params:
            # Of an empty text typer makes the current folder.
            if option.metavar in _PATHS and _value_in(spread, option.opts) == "":
                raise typer.BadParameter("expected a path, got ''", ctx=ctx, param=cast("Any", option))
        try:
            return super().parse_args(ctx, spread.copy())
        except CommandError as error:
            command_error = cast("Any", error)
            command_error.ctx = command_error.ctx or ctx  # of an option without its value it is not set
            option = getattr(error, "param", None)
            if option is not None and (value := _value_in(spread, option.opts)) is not None:
                command_error.message = f"{command_error.message.rstrip('.')}, got {shortened(value)}"
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for option in self.params:
            if not isinstance(option, TyperArgument | TyperOption):
                continue
            help_text = option.help or ""
            for key in [key for key in _NAMES if key in help_text]:
                module, _, function = _NAMES[key].partition(":")
                names = getattr(import_module(module), function)
                listed = cast("Iterable[str]", names() if callable(names) else names)
                option.help = help_text = help_text.replace(key, ", ".join(listed))
        super().format_help(ctx, formatter)


class CommandGroup(typer.Typer):
    """Commands that `erasure --help` lists under one title.

    Args:
        title: Title of the group.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:
        return super().command(name, cls=LibraryCommand, rich_help_panel=self.title, **options)


def _repeated(args: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """Put a flag before each of the values that follow it: `--prompt a b` becomes `--prompt a --prompt b`."""
    flag, values = "", 0
    for arg in args:
        if arg.startswith("-") and arg != "-":
            flag, values = (arg if arg in flags else ""), 0
        elif flag:
            values += 1
            if values > 1:
                yield flag
        yield arg


def _value_in(args: Sequence[str], flags: Sequence[str]) -> str | None:
    """Return the last value of an option among arguments; None without it."""
    values = [value for flag, value in pairwise(args) if flag in flags]
    values += [value for flag, sign, value in (arg.partition("=") for arg in args) if sign and flag in flags]
    return values[-1] if values else None
