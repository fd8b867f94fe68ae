"""Commands about the installation: app, methods, models, doctor."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import ErasureError
from ..provenance import provenance
from .console import out
from .models import existing_device, lasting_name, load_pipe
from .options import Device


def web(
    model: Annotated[
        str | None,
        typer.Option(help="tinyworld, a diffusers folder or a Hub id  [default: the ledger's base, else tinyworld]"),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="One ledger that every visitor works on  [default: each has their own]"),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Ask Gradio for a public address.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where it listens  [default: from 7860, the first free]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Start the web demo: remove concepts in a browser and see the same seeds before and after."""
    import signal

    from erasure.demo.serve import serve

    if model is None and ledger is not None and (ledger / "ledger.json").is_file():
        from ..ledger import Ledger

        model = Ledger.open(ledger).base.name
    name, place = lasting_name(model or "tinyworld"), existing_device(device)
    page, address = serve(load_pipe(name, place), name, place, ledger=ledger, share=share, port=port)
    out.print(f"the demo is at {address}", markup=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' folders are deleted on the way out
    page.block_thread()


def methods() -> None:
    """List the erasers and their settings."""
    import inspect
    from dataclasses import fields

    from ..erasers import eraser_class, eraser_names

    for name in eraser_names():
        kind = eraser_class(name)
        module = inspect.getmodule(kind)
        heading = (inspect.getdoc(module) or inspect.getdoc(kind) or "").splitlines()[0]
        out.print(f"[bold]{name}[/bold]  {heading}")
        for item in fields(kind):
            out.print(f"    eraser.{item.name}={item.default!r}", markup=False)


def models() -> None:
    """List the models that can be edited."""
    from ..backbones import families

    out.print("[bold]tinyworld[/bold]  the embedded model of a small drawn world (default)")
    out.print("[bold]DIR[/bold]        a folder saved by diffusers")
    out.print("[bold]HUB_ID[/bold]     a model of the Hugging Face Hub, as owner/name")
    out.print(f"families: {', '.join(families())}", markup=False)


def doctor() -> None:
    """Say what this machine has and what is missing; exit code 1 if the default run cannot work."""
    from ..judge import CLIP_WEIGHTS, cached_clips
    from .doctor import checks

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in provenance("accelerate", "peft", "huggingface_hub")["versions"].items():
        table.add_row(name, version)
    for check in checks(existing_device("auto")):
        table.add_row(check.name, Text(check.found))  # as it stands: "erasure[app]" is no markup
    no_judge = f"no weights in the local cache: hf download {CLIP_WEIGHTS[0]}, to measure other models than tinyworld"
    table.add_row("CLIP judge", next(iter(cached_clips()), no_judge))
    try:
        load_pipe("tinyworld", "cpu")
        table.add_row("tinyworld", "loads")
    except ErasureError as error:
        table.add_row("tinyworld", Text(str(error)))
        out.print(table)
        raise typer.Exit(1) from None
    out.print(table)
