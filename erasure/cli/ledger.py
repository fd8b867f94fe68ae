"""Commands on a ledger: log, undo, verify, replay, load-edit."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..errors import ErasureError, InputError
from ..progress import progress_bars
from .console import err, out, print_json
from .entries import entry_json, entry_line, standing_names, targets_of
from .models import base_of, existing_device, lasting_name, load_pipe, new_folder
from .options import AsJson, CommandGroup, Device, LedgerFolder, Removed

commands = CommandGroup("Remove and undo")


@commands.command()
def log(ledger: LedgerFolder, as_json: AsJson = False) -> None:
    """List the entries of a ledger, undone ones included."""
    from erasure.eval.protocols.ledger_measures import course_of, health_lines, measured_of

    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    if as_json:
        removals = [
            {**entry_json(entry, opened), "health": (measured_of(opened, entry) or {}).get("health")}
            for entry in opened.entries
        ]
        base = {"name": opened.base.name, "fingerprint": opened.base.fingerprint}
        origin = opened.origin and asdict(opened.origin)
        document = {"ledger": str(ledger), "base": base, "origin": origin, "entries": removals}
        print_json({**document, "course": course_of(opened).as_json()})
        return
    table = Table("id", "removed", "becomes", "method", "state", "time", box=None, pad_edge=False)
    for entry in opened.entries:
        state = f"{entry.state}, approximate" if entry.id in opened.approximate else entry.state
        becomes = ", ".join(dict.fromkeys(concept.anchor or "nothing" for concept in entry.concepts))
        table.add_row(entry.id, Text(targets_of(entry)), Text(becomes), entry.shown_method, state, entry.time)
    out.print(f"base: {opened.base.name} ({opened.base.fingerprint[:12]})")
    if opened.origin is not None:
        entries = ", ".join(opened.origin.entries)
        out.print(f"replayed: {entries} of a ledger of {opened.origin.base.name}")
    out.print(table if opened.entries else "no removals yet")
    for line in health_lines(opened):
        out.print(line)


@commands.command()
def undo(
    ledger: LedgerFolder,
    name: Annotated[str, typer.Argument(metavar="ID", help="Identifier of the entry, as listed by `erasure log`.")],
    device: Device = "auto",
) -> None:
    """Undo one entry of a ledger, in any order; the others stay."""
    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    entry = opened.undo(name)
    out.print(f"{entry.id} {targets_of(entry)}: undone. Standing: {standing_names(opened)}.")
    if not opened.approximate:
        return
    try:
        moved = opened.moved(load_pipe(opened.base.name, existing_device(device)))
    except ErasureError as error:  # the undo itself succeeded
        moved = {}
        out.print(f"drift of the remaining entries not computed: {error}")
    for other in opened.approximate:
        drift = f" The weights beneath it moved by {moved[other]:.2f} of its own change." if other in moved else ""
        parts = "+".join(opened.approximate_parts(other))
        subject = "was" if parts == opened.entry(other).shown_method else f"its map is solved anew; {parts} was"
        out.print(f"{other}: {subject} trained on top of an undone removal; an approximation stands.{drift}")


@commands.command()
def verify(ledger: LedgerFolder, device: Device = "auto") -> None:
    """Verify a ledger: files by hash, closed forms by solving again, base by fingerprint; exit code 1 on a mismatch."""
    from ..ledger import Ledger

    opened = Ledger.open(ledger)
    pipe = load_pipe(opened.base.name, existing_device(device))
    problems = opened.verify(pipe)
    for problem in problems:
        out.print(problem)
    if problems:
        raise typer.Exit(1)
    count = len(opened.entries)
    out.print(f"verified: {count} removal{'s' * (count != 1)}, files, replay and base are as recorded.")


@commands.command()
def replay(
    ledger: LedgerFolder,
    model: Annotated[str, typer.Option(help="Another model of the same family: a folder or a Hub id.")],
    to: Annotated[
        Path | None, typer.Option("--ledger", metavar="DIR", help="New ledger; default: a folder under erasure-runs.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Fit the standing removals of a ledger on another model, as a new ledger."""
    from ..ledger import Ledger, starting
    from ..ledger.replay import replay as replayed
    from ..profile import profile_of

    source, place = Ledger.open(ledger), existing_device(device)
    pipe = load_pipe(model, place)
    folder = to or new_folder([concept for entry in source.standing for concept in entry.concepts])
    with starting(folder), progress_bars(err) as on_progress:
        target, entries = replayed(
            source,
            pipe,
            lasting_name(model),
            folder,
            on_progress=on_progress,
            judge=profile_of(model).judge(place),
        )
        if target.entries:
            out.print(f"{folder}: {len(target.entries)} entries exist already.")
        for entry in entries:
            out.print(entry_line(entry, None))
    out.print(f"ledger: {folder}")


@commands.command("load-edit")
def load_edit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Safetensors file: an edit, or changed weights.")],
    removed: Removed = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the concepts: object, style, identity or unsafe.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model of the edit; default: that of the ledger, else tinyworld.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New or existing ledger; default: a new one under erasure-runs."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Record an existing edit as an entry: weights in the formats of UCE and ESD, or an edit of this library."""
    from ..edits import Edit, weights_of
    from ..edits.foreign_weights import import_edit, is_own
    from ..ledger import Ledger, starting
    from ..profile import DEFAULT_MODEL
    from ..runs.schema import parse

    is_edit = is_own(file)
    if is_edit and removed:
        raise InputError(
            "--removed: expected none for an edit of this library, which records it, got some. Leave it out."
        )
    if not is_edit and not removed:
        raise InputError(
            "--removed: expected the removed concepts, which the file does not record, got none. Name them."
        )
    name = model or base_of(ledger) or DEFAULT_MODEL
    shared = {} if kind is None else {"kind": kind}
    pipe = load_pipe(name, existing_device(device))
    if is_edit:
        edit: Edit = Edit.load(file)
    else:
        requests = [{"target": target, **shared} for target in removed or []]
        edit = import_edit(file, pipe, parse({"model": name, "concepts": requests}).concepts)
    folder = ledger or new_folder(edit.metadata.concepts)
    with starting(folder):
        entry = Ledger.open_or_create(folder, pipe, lasting_name(name)).add(edit, distinct=True)
    out.print(f"{entry.id} {targets_of(entry)}: {entry.shown_method}, {len(weights_of(edit).changes)} weights")
    out.print(f"ledger: {folder}")
