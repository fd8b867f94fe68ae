"""Commands on the record of a ledger: log, undo, verify, replay, load-edit."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import ErasureError, InputError
from ..progress import progress_bars
from .console import err, out, print_json
from .entries import entry_json, entry_line, standing_names, targets_of
from .models import existing_device, lasting_name, load_pipe, new_folder
from .options import AsJson, Device, LedgerFolder, Removed

if TYPE_CHECKING:
    pass


def log(ledger: LedgerFolder, as_json: AsJson = False) -> None:
    """List the removals of a ledger, those undone as well."""
    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    if as_json:
        entries = [entry_json(entry, opened) for entry in opened.entries]
        base = {"name": opened.base.name, "fingerprint": opened.base.fingerprint}
        origin = opened.origin and asdict(opened.origin)
        document = {"ledger": str(ledger), "base": base, "origin": origin, "entries": entries}
        print_json(document)
        return
    table = Table("id", "removed", "becomes", "method", "state", "time", box=None, pad_edge=False)
    for entry in opened.entries:
        state = f"{entry.state}, approximate" if entry.id in opened.approximate else entry.state
        becomes = ", ".join(dict.fromkeys(concept.anchor or "nothing" for concept in entry.concepts))
        table.add_row(entry.id, targets_of(entry), becomes, entry.method, state, entry.time)
    out.print(f"base: {opened.base.name} ({opened.base.fingerprint[:12]})", markup=False)
    if opened.origin is not None:
        made = ", ".join(opened.origin.entries)
        out.print(f"replayed: {made} of a ledger of {opened.origin.base.name}", markup=False)
    out.print(table if opened.entries else "no removals yet")


def undo(
    ledger: LedgerFolder,
    name: Annotated[str, typer.Argument(metavar="ID", help="As `erasure log` shows it.")],
    device: Device = "auto",
) -> None:
    """Take one removal back, whichever it is; the others stay."""
    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    entry = opened.undo(name)
    out.print(f"{entry.id} {targets_of(entry)}: undone. Standing: {standing_names(opened)}.", markup=False)
    if not opened.approximate:
        return
    try:
        moved = opened.moved(load_pipe(opened.base.name, existing_device(device)))
    except ErasureError as error:  # the undo stands all the same
        moved = {}
        out.print(f"how far the others moved is not known: {error}", markup=False)
    for other in opened.approximate:
        far = f" The weights beneath it moved by {moved[other]:.2f} of its own change." if other in moved else ""
        out.print(f"{other}: was trained on top of an undone removal; an approximation stands.{far}", markup=False)


def verify(ledger: LedgerFolder, device: Device = "auto") -> None:
    """Check a ledger: files by hash, removals by solving them again, the base by fingerprint. Exit code 1 if not."""
    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    pipe = load_pipe(opened.base.name, existing_device(device))
    problems = opened.verify(pipe)
    for problem in problems:
        out.print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
    count = len(opened.entries)
    out.print(f"verified: {count} removal{'s' * (count != 1)}, files, replay and base are as recorded.", markup=False)


def replay(
    ledger: LedgerFolder,
    model: Annotated[str, typer.Option(help="Another model of the same family: a folder or a Hub id.")],
    to: Annotated[
        Path | None, typer.Option("--ledger", metavar="DIR", help="The new ledger  [default: under erasure-runs]")
    ] = None,
    device: Device = "auto",
) -> None:
    """Remove from another model what stands removed in a ledger, fitted anew on that model's weights."""
    from ..ledger import Ledger
    from ..ledger.replay import replay as replayed
    from ..profile import profile_of

    source, place = Ledger.open(ledger), existing_device(device)
    pipe = load_pipe(model, place)
    folder = to or new_folder([concept for entry in source.standing for concept in entry.concepts])
    with progress_bars(err) as on_progress:
        target, entries = replayed(
            source,
            pipe,
            lasting_name(model),
            folder,
            on_progress=on_progress,
            judge=profile_of(model).judge(place),
        )
        if target.entries:
            out.print(f"{folder}: {len(target.entries)} made before.", markup=False)
        for entry in entries:
            out.print(entry_line(entry, None), markup=False)
    out.print(f"ledger: {folder}", markup=False)


def load_edit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file: an edit, or new weights.")],
    removed: Removed = None,
    kind: Annotated[str | None, typer.Option(help="object, style, identity or unsafe.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The base that it was made for  [default: the ledger's, else tinyworld]")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it is recorded; an existing one goes on  [default: new, erasure-runs]"),
    ] = None,
    device: Device = "auto",
) -> None:
    """Record an edit that was made elsewhere as a removal: weights as UCE and ESD publish them, or this library's."""
    from ..edits import WeightEdit
    from ..edits.foreign_weights import import_edit, is_own
    from ..ledger import Ledger
    from ..profile import DEFAULT_MODEL
    from ..runs.schema import parse

    own = is_own(file)
    if own and removed:
        raise InputError("--removed: expected none for an edit of this library, which says it, got some. Leave it out.")
    if not own and not removed:
        raise InputError("--removed: expected what was removed, which the file does not say, got none. Name it.")
    exists = ledger is not None and (ledger / "ledger.json").is_file()
    name = model or (Ledger.open(ledger).base.name if exists and ledger is not None else DEFAULT_MODEL)
    shared = {} if kind is None else {"kind": kind}
    pipe = load_pipe(name, existing_device(device))
    if own:
        edit = WeightEdit.load(file)
    else:
        asked = [{"target": target, **shared} for target in removed or []]
        edit = import_edit(file, pipe, parse({"model": name, "concepts": asked}).concepts)
    folder = ledger or new_folder(edit.metadata.concepts)
    opened = Ledger.open_or_create(folder, pipe, lasting_name(name))
    entry = opened.add(edit)
    out.print(f"{entry.id} {targets_of(entry)}: {entry.method}, {len(edit.changes)} weights", markup=False)
    out.print(f"ledger: {folder}", markup=False)
