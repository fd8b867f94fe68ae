"""Commands about the installation: app, methods, pieces, models, doctor."""

import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..errors import ErasureError, InputError
from ..io import interrupts
from ..provenance import provenance
from .console import out
from .models import base_of, existing_device, lasting_name, load_pipe
from .options import CommandGroup, Device

if TYPE_CHECKING:
    from ..registry import Registry

commands = CommandGroup("Set-up")

_WIDEST = 1000  # columns, for the width that a table needs


@commands.command("app")
def web(
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: tinyworld, a diffusers folder or a Hub id; default: the base of the ledger, else tinyworld."
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Ledger shared by all visitors; default: one for each."),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Request a public address from Gradio.")] = False,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the server; default: the first free one from 7860.")
    ] = None,
    job_minutes: Annotated[
        int, typer.Option(min=1, max=1440, help="Longest time that one job of a visitor may take.")
    ] = 30,
    device: Device = "auto",
) -> None:
    """Start the web demo: remove concepts in a browser and compare images of equal seeds."""
    import signal

    from erasure.demo.server.serve import require_gradio, serve
    from erasure.demo.server.waiting import WaitingPage

    if share and ledger is not None:
        raise InputError(f"app: expected no --ledger with --share, got {str(ledger)!r}. Strangers could change it.")
    require_gradio()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that visitors' folders are deleted on the way out
    with WaitingPage(port, out.print) as waiting:
        out.print(f"starting at {waiting.address}")
        waiting.say("loading PyTorch and diffusers")
        name, place = _model_of(model, ledger), existing_device(device)
        waiting.say(f"loading {name} on {place}")
        pipe = load_pipe(name, place)
        waiting.say("loading Gradio")
        page, address = serve(
            pipe, name, place, ledger=ledger, share=share, minutes=float(job_minutes), waiting=waiting
        )
    out.print(f"the demo is at {address}")
    interrupts.release()  # the server ends by an interrupt
    page.block_thread()


def _model_of(model: str | None, ledger: Path | None) -> str:
    """Return the name of the model of the demo: the given one, that of the ledger, or the default."""
    from ..profile import DEFAULT_MODEL

    return lasting_name(model or base_of(ledger) or DEFAULT_MODEL)


@commands.command()
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Eraser, for its settings; default: all.")] = None,
) -> None:
    """List the erasers with the facts to choose one by, or the settings of one."""
    from ..erasers import eraser_class
    from ..registry import described
    from ..runs.overview import HEADINGS, NOTES, NOTHING, overviews

    if name is None:
        table = Table(box=None, pad_edge=False)
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold")
        rows = [each.cells() for each in overviews()]
        for row in rows:
            table.add_row(*row)
        if Measurement.get(out, out.options.update(max_width=_WIDEST), table).minimum <= out.width:
            out.print(table)
        else:  # narrower than the words of a row: one paragraph an eraser
            for name, *facts in rows:
                known = [
                    f"{heading}: {fact}" for heading, fact in zip(HEADINGS[1:], facts, strict=True) if fact != NOTHING
                ]
                out.print(Text.assemble((name, "bold"), "  " + "; ".join(known)))
        out.print(NOTES)
        return
    kind = eraser_class(name)
    summary = (getdoc(kind) or "").partition("\n")[0]
    out.print(Text.assemble((name, "bold"), f"  {summary} Source: {kind.source}; {kind.exactness}."))
    descriptions = {key: text for base in reversed(kind.__mro__) for key, text in described(base).items()}
    for item in fields(kind):
        out.print(f"    eraser.{item.name}={default_text(item)}  {descriptions.get(item.name, '')}")


def default_text(item: Field[Any]) -> str:
    """Return the default of a field as text; "(required)" without one."""
    if item.default_factory is not MISSING:
        return repr(item.default_factory())
    return "(required)" if item.default is MISSING else repr(item.default)


@commands.command()
def pieces(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Extension point or piece; default: all.")] = None,
) -> None:
    """List the pieces of every extension point, with their settings, sources and measured verdicts."""
    from ..errors import unknown_name
    from ..registry import described
    from ..runs.verdicts import SEAMS, verdict

    points = extension_points()
    known = {*points, *(piece for point in points.values() for piece in point.names())}
    if name is not None and name not in known:
        raise unknown_name("extension point or piece", name, known)
    for noun, point in points.items():
        for piece, kind in point.classes().items():
            if name not in (None, noun, piece):
                continue
            summary = (getdoc(kind) or "").partition("\n")[0]
            measured = f" Verdict: {verdict(noun, piece)}." if noun in SEAMS else ""
            origin = f"  {summary} Source: {kind.source}; {kind.exactness}.{measured}"
            out.print(Text.assemble(f"{noun}  ", (piece, "bold"), origin))
            for setting, text in described(kind).items():
                if name == piece:
                    out.print(f"    {setting}  {text}")


def extension_points() -> "Mapping[str, Registry[Any]]":
    """Return the registry of every extension point by its noun; every package of the library is imported for that."""
    from ..registry import registries

    for root in ("erasure", "erasure.pipelines", "erasure.eval"):
        for module in pkgutil.walk_packages(import_module(root).__path__, f"{root}."):
            if module.ispkg:
                import_module(module.name)
    return dict(sorted(registries().items()))


@commands.command()
def models() -> None:
    """List the models that can be edited, and what works on each family."""
    from .. import tinyworld
    from ..loading.families import HEADINGS, NOT_RELEASED, family_support

    untrained = "" if (tinyworld.FLUX / "transformer" / "config.json").is_file() else "; its weights are not installed"
    kinds = {
        "tinyworld": "the embedded model of a small drawn world (default)",
        "tinyworld-flux": f"a transformer of the same world, trained by flow matching{untrained}",
        "DIR": "a folder saved by diffusers",
        "HUB_ID": "a model of the Hugging Face Hub, as owner/name",
    }
    for name, description in kinds.items():
        out.print(Text.assemble((f"{name:<14}", "bold"), f"  {description}"))
    table = Table(box=None, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for support in family_support():
        table.add_row(*support.cells())
    out.print(table)
    out.print(NOT_RELEASED)


@commands.command()
def doctor() -> None:
    """Check devices, extras and weights on this machine; exit code 1 if the default run cannot work."""
    from ..judge import CLIP_WEIGHTS, cached_clips
    from .doctor import checks

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in provenance("accelerate", "peft", "huggingface_hub")["versions"].items():
        table.add_row(name, version)
    for check in checks(existing_device("auto")):
        table.add_row(check.name, check.result)
    missing = f"no weights in the local cache: hf download {CLIP_WEIGHTS[0]}, to measure other models than tinyworld"
    table.add_row("CLIP judge", next(iter(cached_clips()), missing))
    try:
        load_pipe("tinyworld", "cpu")
        table.add_row("tinyworld", "loads")
    except ErasureError as error:
        table.add_row("tinyworld", str(error))
        out.print(table)
        raise typer.Exit(1) from None
    out.print(table)
