"""One least-squares problem for several removals, the same in any order to the last bit."""

import re
from collections.abc import Sequence, Set

from ..concept import normalized
from ..errors import InputError
from .problem import Row, Rows, TextMap
from .solve import solve


def joined_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of one problem that does what all the parts ask, in any order the same to the last bit.

    A name that is erased anywhere leaves the preserved rows, and rows whose template speaks of it go ("a cat in the
    style of {}" would keep the cat). Equal rows count once, at their largest weight. The largest `reg` holds, and of
    what limits the states held exactly the setting that holds most. An anchor that is itself erased resolves to that
    name's anchor.

    Raises:
        InputError: There are no parts, they are of different models or streams, or anchors go round in a circle.
    """
    if not parts:
        raise InputError("rows: expected at least one removal, got none. Add one first.")
    widths = {part.targets.shape[1] for part in parts}
    if len(widths) > 1:
        raise InputError(f"rows: expected states of one width, got {sorted(widths)}. Join removals of one model.")
    spaces = {part.space for part in parts}
    if len(spaces) > 1:
        raise InputError(f"rows: expected states of one text stream, got {sorted(spaces)}. Join those of each apart.")
    erased = [row for part in parts for row in part.erased_rows()]
    kept = [row for part in parts for row in part.kept_rows()]
    names = {row.label for row in erased}
    spoken_of = _templates_speaking_of(names, {row.template for row in [*erased, *kept]})
    erased = _first_of_each([row for row in erased if row.template not in spoken_of])
    kept = _first_of_each([row for row in kept if row.template not in spoken_of and row.label not in names])
    erased = _with_anchors_resolved(erased)
    holding = [part for part in parts if bool(part.held.any())]
    ranks = [part.held_rank for part in holding]
    return Rows.of(
        erased,
        kept,
        reg=max(part.reg for part in parts),
        dim=widths.pop(),
        space=spaces.pop(),
        reg_each=max(part.reg_each for part in parts),
        threshold=min((part.threshold for part in holding), default=0.0),
        held_rank=max((rank for rank in ranks if rank is not None), default=None) if None not in ranks else None,
    )


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in canonical order, each key once, at its largest weight.

    At one weight the strongest is taken. Two encodings of one row may differ in their last bits; then the smaller
    numbers are taken, in any order the same.
    """
    by_key: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        by_key.setdefault(row.key, []).append(row)
    return [same[0] if len(same) == 1 else min(same, key=_preference) for _, same in sorted(by_key.items())]


def _preference(row: Row) -> tuple[float, float, list[float], list[float]]:
    return (-row.weight, -row.strength, row.state.tolist(), row.anchor.tolist())


def _templates_speaking_of(names: Set[str], templates: Set[str]) -> set[str]:
    """Return the templates that hold one of the names as whole words."""
    some = "|".join(re.escape(name) for name in sorted(names) if name)
    pattern = re.compile(rf"(?<!\w)(?:{some})(?!\w)")
    return {template for template in templates if some and pattern.search(normalized(template))}


def _with_anchors_resolved(rows: Sequence[Row]) -> list[Row]:
    """Replace each anchor that is itself erased by what it becomes, along the whole chain.

    The state at the same site of the anchor's own removal says what that is; a removal without that site says it by
    its own map.
    """
    becomes = {row.label: row.anchor_label for row in reversed(rows)}
    _refuse_circles(becomes)
    row_of = {(row.label, row.site): row for row in reversed(rows)}
    maps: dict[str, TextMap] = {}

    def resolved(row: Row) -> Row:
        if row.anchor_label not in becomes:
            return row
        label, anchor = row.anchor_label, row.goal
        while label in becomes:
            if (label, row.site) in row_of:
                label, anchor = row_of[label, row.site].anchor_label, row_of[label, row.site].goal
                continue
            if label not in maps:
                label_rows = [other for other in rows if other.label == label]
                maps[label] = solve(Rows.of(label_rows, [], reg=_RESOLVING_REG, dim=len(anchor)))
            label, anchor = becomes[label], maps[label].matrix() @ anchor
        return Row(
            label=row.label, site=row.site, state=row.state, weight=row.weight, anchor_label=label, anchor=anchor
        )

    return [resolved(row) for row in rows]


# Small beside the squared norm of a text state (768 for a CLIP state of unit variance), so that the anchor is followed
# nearly all the way, and large enough for a single row.
_RESOLVING_REG = 1e-2


def _refuse_circles(becomes: dict[str, str]) -> None:
    for start in sorted(becomes):
        seen = [start]
        while seen[-1] in becomes:
            following = becomes[seen[-1]]
            if following in seen:
                circle = " -> ".join([*seen, following])
                raise InputError(f"anchor: expected a concept that stays, got the circle {circle}. Change one anchor.")
            seen.append(following)
