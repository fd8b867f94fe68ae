"""Options and arguments that several commands share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

LedgerFolder = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
AttentionBy = Annotated[str, typer.Option("--attention", help="sdpa; or xformers, on CUDA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Prompts = Annotated[list[str], typer.Option("--prompt", metavar="TEXT ...", help="One or more prompts.")]
Seeds = Annotated[str, typer.Option(help="Seeds, as in 0,1,2 or 0-7; every prompt gets each.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps  [default: the model's own]")]
Removed = Annotated[list[str] | None, typer.Option(metavar="TEXT ...", help="What is to be gone; a ledger knows it.")]
Original = Annotated[
    str | None,
    typer.Option(help="What a model was made from; a ledger knows it  [default: tinyworld, for one of its kind]"),
]
Siblings = Annotated[
    list[str] | None,
    typer.Option("--siblings", metavar="TEXT ...", help="What is like its class  [default: what the tiny world knows]"),
]
PicturesEach = Annotated[
    int, typer.Option("--pictures", min=0, help="Of it in company, and as many alone; 0 measures nothing.")
]
LowMemory = Annotated[
    bool,
    typer.Option("--low-memory", help="Leave the weights on the disk, read them one by one; no pictures, on the CPU."),
]
Guidance = Annotated[float | None, typer.Option(min=0, help="Guidance scale  [default: the model's own]")]


class ManyValues(TyperCommand):
    """Accept several values after an option whose metavar ends with "...": `--prompt "a cat" "a dog"`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [flag for option in self.params for flag in option.opts if (option.metavar or "").endswith("...")]
        return super().parse_args(ctx, list(_repeated(args, flags)))


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
