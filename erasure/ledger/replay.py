"""Replay: the removals of one ledger fitted anew on the weights of another model of the same family."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..edits import Change, weights_of
from ..erasers import Eraser, eraser_names, make_eraser
from ..errors import InputError
from ..judge import Judge
from ..progress import OnProgress
from .ledger import Ledger
from .record import Entry, Origin, is_ledger
from .renamed import present_settings


@checks_arguments
def replay(
    source: Ledger,
    pipe: DiffusionPipeline,
    name: str,
    path: str | Path,
    *,
    on_progress: OnProgress | None = None,
    judge: Judge | None = None,
) -> tuple[Ledger, Iterator[Entry]]:
    """Start a ledger of another model with the standing removals of this one, each fitted on that model's weights.

    Every removal is checked before the first fit. An interrupted replay continues where it stopped.

    Args:
        source: The ledger.
        pipe: The other model, unedited.
        name: Argument of `load_model` for it.
        path: The new ledger's folder.
        on_progress: Receives the progress of the fit.
        judge: See `Ledger.remove`.

    Returns:
        The new ledger, and an iterator that makes the entries: each is in the ledger before it is yielded.

    Raises:
        InputError: No removal stands, one cannot be made again, or the model is of another family.
        LedgerError: The folder holds another ledger.
    """
    if not source.standing:
        raise InputError(
            f"replay: expected removals that stand, got none in {str(source.path)!r}. Remove something first."
        )
    erasers = {entry.id: _eraser(entry) for entry in source.standing}
    _check_family(source, pipe, name)
    origin = Origin(base=source.base, state=source.state(), entries=tuple(erasers))
    fingerprint = backbone_of(pipe).fingerprint()
    if is_ledger(path):
        target = Ledger.open(path)
        target.check_base(fingerprint, name)
        if target.origin != origin or len(target.standing) < len(target.entries):
            raise InputError(
                f"replay: expected a new folder, or one that a replay of the same removals began, got {str(path)!r}."
                " Name another."
            )
    else:
        target = Ledger.create(path, fingerprint, name, origin=origin)
    return target, _made(source, target, erasers, pipe, on_progress, judge)


def _made(
    source: Ledger,
    target: Ledger,
    erasers: dict[str, Eraser],
    pipe: DiffusionPipeline,
    on_progress: OnProgress | None,
    judge: Judge | None,
) -> Iterator[Entry]:
    for entry in source.standing[len(target.entries) :]:
        eraser = erasers[entry.id]
        yield target.remove(pipe, eraser, entry.concepts, on_progress=on_progress, seed=entry.seed, judge=judge)


def _eraser(entry: Entry) -> Eraser:
    if entry.method not in eraser_names():
        raise InputError(
            f"replay: expected removals by {', '.join(eraser_names())}, got {entry.id} by {entry.method!r}, whose"
            " making is not known. Undo it first."
        )
    return make_eraser(entry.method, **present_settings(entry.method, entry.settings))


def _check_family(source: Ledger, pipe: DiffusionPipeline, name: str) -> None:
    """Refuse a model that has other layers than those that the removals changed."""
    edit = weights_of(source.edit())
    parameters = backbone_of(pipe).parameters(edit.changes.__contains__)
    for parameter, change in edit.changes.items():
        if parameter not in parameters or not _fits(change, tuple(parameters[parameter].shape)):
            raise InputError(
                f"replay: expected a model of the same family as {source.base.name!r}, got {name!r}, which has no"
                f" {parameter!r} of that shape. Give a model with the same layers."
            )


def _fits(change: Change, shape: tuple[int, ...]) -> bool:
    """Return True if a change fits a weight of that shape; nothing is computed."""
    try:
        return tuple(change.of(torch.empty(shape, device="meta")).shape) == shape
    except RuntimeError:
        return False
