"""CFE by double projections: a proxy in a safe span, an update in a null space (Zhang et al., CVPR 2026).

Known from the abstract of arXiv:2604.10032 and from one note about it; no code is published.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..closed_form.joint import joined_rows
from ..closed_form.names import NameReader, Wording
from ..closed_form.pair_problems import calibrated
from ..closed_form.problem import Row, Rows
from ..closed_form.projections import Projections, projections
from ..closed_form.readers import EmptyAnchor, TrailingStates
from ..closed_form.solve import free_directions
from ..concept import Concept, normalized
from ..edits import WeightEdit
from ..errors import InputError
from ..graph import ConceptGraph
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, solved_edit


@dataclass(frozen=True, kw_only=True)
class CFE(Eraser):
    """Closed-form edit that moves nothing that is kept, and turns a target into its shadow in a span of safe concepts.

    With the states s of safe concepts as columns of S, those of kept names as columns of P, and an orthonormal basis
    U_2 of the left null space of P,

        c* = S (S^T S)^+ S^T c
        W' = W (I + (C* - C) X^+ U_2^T)    with X = U_2^T C,

    so that W' p = W p exactly and W' c = W c*. With `ridge`, (X^T X + ridge I)^-1 X^T stands for X^+.

    Differs from the paper: several targets are solved for at once (the note has one); the safe concepts are the anchor
    and the preserved names nearest to the target, where none are given; they are held too (`keep_proxies`), which makes
    the map singular; the empty prompt's states are held.

    Attributes:
        safe: Safe concepts; none takes the preserved names nearest to each target. The anchor is always one.
        neighbours: Number of these names, >= 0.
        proxy: Whether a target becomes its projection on the safe span; else its anchor.
        keep_proxies: Whether the safe concepts and the anchor are held as well.
        rows: Text states that are rows.
        trailing_states: Number of trailing states of a prompt, 1 to 512, unless `rows` is "last-subject".
        keep_rank: Number of directions of what is kept that are held, the largest, >= 0; None holds all of them.
        ridge: Pull towards the old weights, >= 0; 0 is exact.
        invariants: Number of centres of the empty prompt's states after the first that are held, >= 0.
        least_share: Smallest share of a target outside what is kept, in [0, 1]: below it the edit is refused, because
            it would grow as the inverse of that share.
        sites: Layers that are edited.
        empty_anchor: State of the empty prompt that stands for the name where that prompt is the anchor.
    """

    name: ClassVar[str] = "cfe"
    source: ClassVar[str] = "arXiv:2604.10032"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "unknown"
    stage: ClassVar[Stage] = "map of text states"
    depends_on: ClassVar[Dependence] = "text"
    main: ClassVar[tuple[str, ...]] = ("neighbours", "ridge", "keep_rank")
    quick: ClassVar[Mapping[str, Any]] = {"rows": "last-subject"}

    safe: tuple[str, ...] = ()
    neighbours: Annotated[int, Ge(0)] = 4
    proxy: bool = True
    keep_proxies: bool = True
    rows: Wording = "name"
    trailing_states: TrailingStates = 4
    keep_rank: Annotated[int, Ge(0)] | None = None
    ridge: Annotated[float, Ge(0)] = 0.0
    invariants: Annotated[int, Ge(0)] = 3
    least_share: Annotated[float, Interval(ge=0, le=1)] = 0.05
    sites: Projections = "all"
    empty_anchor: EmptyAnchor = "end"

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        return solved_edit(self, self.problems_of(concepts, context), concepts, context)

    def projections(self, backbone: Backbone, space: str) -> list[str]:
        """Return the full names of the layers that are edited and read a text stream."""
        return projections(backbone, self.sites, space)

    def problems_of(self, concepts: Sequence[Concept], context: FitContext) -> tuple[Rows, ...]:
        """Return the least-squares problems that remove the concepts, one for each text stream.

        Raises:
            InputError: There are no concepts, a name is longer than what the model reads, or a target lies in the span
                of what is kept.
        """
        self.require(concepts, context.backbone)
        safe = {concept: self._safe(concept, context) for concept in concepts}
        reader = NameReader(
            context.backbone,
            concepts,
            [name for names in safe.values() for name in names],
            wording=self.rows,
            trailing_states=self.trailing_states,
            empty_anchor=self.empty_anchor,
        )
        problems = tuple(self._problem(safe, reader, space) for space in reader.spaces)
        for rows in problems:
            self._check_free(joined_rows([rows]))
        return calibrated(problems, context.backbone)

    def _problem(self, safe: Mapping[Concept, tuple[str, ...]], reader: NameReader, space: str) -> Rows:
        erased, held = [], reader.empty(self.invariants, space)
        for concept, names in safe.items():
            proxies = {name: reader.held(name, concept.kind, space) for name in names}
            targets = reader.erased(concept, space)
            erased += [self._aimed(row, proxies) for row in targets]
            held += [row for name in concept.preserve for row in reader.held(name, concept.kind, space)]
            if self.keep_proxies:
                held += [*(row for rows in proxies.values() for row in rows), *map(_kept, targets)]
        return Rows.of(
            erased,
            list({row.key: row for row in held}.values()),
            reg=self.ridge,
            dim=reader.width(space),
            space=space,
            held_rank=self.keep_rank,
        )

    def _safe(self, concept: Concept, context: FitContext) -> tuple[str, ...]:
        """Return the safe concepts of a target, apart from its anchor."""
        taken = {normalized(name) for name in (*concept.names, concept.anchor)}
        if self.safe:
            return tuple(name for name in self.safe if normalized(name) not in taken)
        names = [name for name in concept.preserve if normalized(name) not in taken]
        if not names or not self.neighbours:
            return ()
        graph = ConceptGraph.of(context.backbone, [concept.target, *names])
        return tuple(name for name, _ in graph.nearest([concept.target], self.neighbours))

    def _aimed(self, row: Row, proxies: dict[str, list[Row]]) -> Row:
        """Return a target's row with its projection on the safe states of the same place as what it becomes."""
        if not self.proxy or not proxies:
            return row
        states = [row.anchor, *(other.state for rows in proxies.values() for other in rows if other.site == row.site)]
        safe = torch.stack(states).cpu().double()
        label = normalized(", ".join(filter(None, (row.anchor_label, *proxies))))
        return replace(row, anchor_label=label, anchor=_projected(row.state.cpu().double(), safe))

    def _check_free(self, rows: Rows) -> None:
        """Refuse a target that lies in the span of what is kept, for which the edit would be huge."""
        inside = torch.linalg.vector_norm(rows.targets @ free_directions(rows), dim=1)
        shares = inside / torch.linalg.vector_norm(rows.targets, dim=1)
        if not len(shares) or float(shares.min()) >= self.least_share:
            return
        worst = int(shares.argmin())
        held = [i for i, label in enumerate(rows.preserve_labels) if label]
        unit = torch.nn.functional.normalize(rows.preserve[held], dim=1)
        nearest = rows.preserve_labels[held[int((unit @ rows.targets[worst]).argmax())]] if held else "the empty prompt"
        raise InputError(
            f"cfe: expected a target that is not made of what is kept, got {rows.labels[worst]!r}, of which"
            f" {shares[worst]:.3f} is free (nearest: {nearest!r})."
            " Preserve fewer names, or set keep_rank, or least_share and ridge."
        )


def _projected(state: Float[Tensor, " dim"], safe: Float[Tensor, "k dim"]) -> Float[Tensor, " dim"]:
    """Return the projection of a state on the span of others."""
    return safe.T @ (torch.linalg.pinv(safe.T) @ state)


def _kept(row: Row) -> Row:
    """Return the row that holds what another row becomes."""
    return Row(
        label=row.anchor_label,
        site=row.site,
        state=row.anchor,
        weight=float("inf"),
        anchor_label=row.anchor_label,
        anchor=row.anchor,
    )
