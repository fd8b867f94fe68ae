"""Checks of a ledger: solving entries again, circles of anchors, the distance that an approximate removal moved."""

from collections.abc import Iterable, Mapping, Sequence

import torch

from ..arguments import checks_arguments
from ..backbones.base import Backbone
from ..closed_form.joint import joined_rows
from ..closed_form.solve import solve
from ..concept import Concept, normalized, normalized_names
from ..edits import Change, Edit, MapChange, SamplingEdit, SolvedChange, WeightEdit, joint
from ..edits.changes import single_changes
from ..erasers import Eraser
from ..erasers.base import clash_of
from ..erasers.shared_map import SharedMap
from ..errors import AlreadyRemovedError, ErasureError, InputError
from ..typed_torch import vector_norm
from .record import Entry
from .renamed import recorded_eraser
from .standing import Standing, anchors_of, reached
from .store import LedgerStore

_REPLAY_TOLERANCE = 1e-6  # relative; the solve is in float64, where another machine's rounding stays far below it


def problems_of(store: LedgerStore, entry: Entry) -> list[str]:
    """Return the faults of an entry's file, one line each."""
    try:
        edit = store.load(entry)
    except ErasureError as error:
        return [str(error)]
    problems: list[str] = []
    if edit.metadata.base_fingerprint != store.record.base.fingerprint:
        problems.append(f"{entry.file}: was made for another base ({edit.metadata.base_fingerprint[:12]}).")
    solved = isinstance(edit, WeightEdit) and edit.closed_form
    origin = edit.metadata
    fit = (origin.concepts, origin.method, origin.settings, origin.seed)
    if solved != entry.solved or fit != (entry.concepts, entry.method, entry.settings, entry.seed):
        problems.append(f"{entry.file}: its header and ledger.json disagree.")
    error = _replay_error(edit) if isinstance(edit, WeightEdit) else 0.0
    if error > _REPLAY_TOLERANCE:
        problems.append(f"{entry.file}: solving it again gives another edit (relative difference {error:.1e}).")
    return problems


def check_distinct(standing: Standing, concepts: Sequence[Concept]) -> None:
    """Refuse concepts of which a name stands removed.

    Args:
        standing: Removals that stand.
        concepts: Concepts to remove.

    Raises:
        AlreadyRemovedError: A name stands removed.
    """
    for name in (name for concept in concepts for name in concept.names):
        if entries := standing.by_name.get(normalized(name)):
            entry = entries[-1].id
            raise AlreadyRemovedError(
                f"ledger: expected a concept that does not stand removed, got {name!r}, which entry {entry} removes."
                f" Undo {entry} first, or leave it out."
            )


def check_together(standing: Standing, eraser: Eraser | None, concepts: Sequence[Concept]) -> None:
    """Refuse a removal that would undo one that stands, or act where that one acts.

    Args:
        standing: Removals that stand.
        eraser: Method of the new one; None for an edit of which nothing is known.
        concepts: Concepts of the new one.

    Raises:
        InputError: They do not go together.
    """
    if eraser is None:
        return
    clashes = [
        ((int(entry.id), not one_concept), entry, reason)
        for other, entry, one_concept in standing.clash_candidates(concepts)
        if (reason := clash_of(eraser, other, one_concept=one_concept))
    ]
    if clashes:
        _, entry, reason = min(clashes, key=lambda clash: clash[0])
        raise InputError(
            f"ledger: expected a removal that goes together with those that stand, got one by {eraser.name!r}"
            f" beside {entry.id} by {entry.shown_method!r}: {reason}. Undo {entry.id} first, or use another method."
        )


def check_addable(store: LedgerStore, edit: Edit) -> None:
    """Refuse a removal that does not go together with one that stands, or that has no solution beside them.

    A circle of anchors has none.

    Raises:
        InputError: It cannot be added.
    """
    check_together(store.standing, recorded_eraser(edit.metadata), edit.metadata.concepts)
    # Only such a removal is solved for now; to solve at every addition would make a thousand of them slow.
    trained = isinstance(edit, WeightEdit) and edit.rows is None
    if trained or not (circle := _possible_circle(store.standing, edit.metadata.concepts)):
        return
    edits = [*(store.load(entry) for entry in store.record.entries if entry.state == "standing"), edit]
    joint(edits)
    on_circle = [each for each in edits if circle & normalized_names(*each.metadata.concepts)]
    if len({isinstance(each, SamplingEdit) for each in on_circle}) == 2:  # each alone has only a part of the circle
        raise InputError(
            f"anchor: expected a concept that stays, got a circle of {', '.join(sorted(circle))}, of which some are"
            " removed in the weights and some during sampling. Change one anchor."
        )


def relative_move(backbone: Backbone, edit: WeightEdit, then: WeightEdit | None, now: WeightEdit | None) -> float:
    """Return the move of the weights beneath an edit, relative to the edit's own change.

    Args:
        backbone: The base.
        edit: The edit.
        then: The edits beneath it when it was fitted; None without any.
        now: The edits beneath it now; None without any.

    Returns:
        |then - now|_F / |edit|_F over the weights that the edit changes; 0 if it changes none.
    """
    moves = changes = 0.0
    nothing: Mapping[str, Change] = {}
    sides = [nothing if side is None else side.changes for side in (then, now)]
    for name, weight in backbone.parameters(edit.changes.__contains__).items():
        original = weight.detach()
        start, end = (side[name].of(original).double() if name in side else 0.0 for side in sides)
        moves += float(torch.as_tensor(start - end).square().sum())
        changes += float(edit.changes[name].of(original).double().square().sum())
    return (moves / changes) ** 0.5 if changes else 0.0


def approximate_parts(entry: Entry, undone: Iterable[Entry]) -> tuple[str, ...]:
    """Return the methods of an approximate removal that stand as they were fitted; of a stack, without its map.

    The map of text states in a stack is solved anew with all others that stand, from the same rows. It is approximate
    too if those rows were read by a text encoder that an undone removal had changed.

    Args:
        entry: Removal that stands.
        undone: Removals beneath it that stand no longer.
    """
    eraser = recorded_eraser(entry)
    if eraser is None:
        return (entry.shown_method,)
    beneath = [member for other in map(recorded_eraser, undone) if other is not None for member in other.members]
    read_otherwise = any(member.place == "text encoder" for member in beneath)
    return tuple(part.name for part in eraser.members if read_otherwise or not isinstance(part, SharedMap))


@checks_arguments
def check_anchors(standing: Iterable[Concept], added: Sequence[Concept]) -> None:
    """Refuse concepts to be solved together whose anchors lead back to them, before the first is removed.

    Args:
        standing: Concepts whose removals stand, and are solved together with the others.
        added: Concepts to remove, one after another or at once.

    Raises:
        InputError: An anchor leads back.
    """
    becomes = anchors_of([*standing, *added])
    for concept in added:
        if reached([normalized(concept.anchor)], becomes) & normalized_names(concept):
            raise InputError(
                f"anchor: expected a concept that stays, got {concept.anchor!r} for {concept.target!r}, a circle: it"
                f" becomes {concept.target!r} itself. Change one anchor."
            )


def _possible_circle(standing: Standing, added: Sequence[Concept]) -> set[str]:
    """Return the names that the anchors of added concepts lead to, if one of them leads back; else none.

    Only a joint solve can tell whether it is a circle of rows.
    """
    anchors = {normalized(concept.anchor) for concept in added} - {""}  # the unconditional prompt is never erased
    on_the_way = reached(anchors, standing.becomes, anchors_of(added))
    return set() if all(on_the_way.isdisjoint(normalized_names(concept)) for concept in added) else on_the_way


def _replay_error(edit: WeightEdit) -> float:
    """Return the relative difference of an edit and the solution of its rows; 0 if trained.

    An edit that stores a map is compared entry by entry in |M - I|_F, any other by |M - I|_F alone.
    """
    singles = (single for change in edit.changes.values() for single in single_changes(change))
    changes = {id(change): change for change in singles}.values()
    worst = 0.0
    for change in changes:
        if isinstance(change, SolvedChange) and change.size is not None:
            worst = max(worst, _relative(abs(change.norm - change.size), change.size))
        elif isinstance(change, MapChange) and (rows := (edit.rows or {}).get(change.space)) is not None:
            stored, again = (each.minus_identity() for each in (change.map, solve(joined_rows([rows]))))
            worst = max(worst, _relative(float(vector_norm(stored - again)), float(vector_norm(stored))))
    return worst


def _relative(difference: float, size: float) -> float:
    return difference / size if size > 0 else difference
