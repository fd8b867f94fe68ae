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
from ..closed_form.names import EndStates, NameReader, Wording
from ..closed_form.problem import Row, Rows
from ..closed_form.projections import Projections, projections
from ..closed_form.readers import EmptyAnchor, TrailingStates
from ..closed_form.solve import free_directions
from ..concept import Concept, Kind, normalized
from ..errors import InputError
from ..graph import ConceptGraph
from ..registry import Exactness
from ..training.context import FitContext
from ..typed_torch import pinv, vector_norm
from .base import Dependence
from .shared_map import SharedMap


@dataclass(frozen=True, kw_only=True)
class CFE(SharedMap):
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

    def projections(self, backbone: Backbone, space: str) -> list[str]:
        return projections(backbone, self.sites, space)

    def reader(self, context: FitContext) -> "CFEReader":
        names = NameReader(
            context.backbone,
            wording=self.rows,
            trailing_states=self.trailing_states,
            empty_anchor=self.empty_anchor,
        )
        return CFEReader(self, context.backbone, names, {})


@dataclass(frozen=True)
class CFEReader:
    """Reader of CFE's problems; see `ProblemReader`.

    Attributes:
        eraser: The method.
        backbone: Model.
        names: Rows of names.
        safe: The safe concepts of each target that was read, apart from its anchor.
    """

    eraser: CFE
    backbone: Backbone
    names: NameReader
    safe: dict[Concept, tuple[str, ...]]

    def read(self, requests: Sequence[Sequence[Concept]]) -> None:
        concepts = [concept for request in requests for concept in request]
        self.safe.clear()
        self.safe.update(self._safe(concepts))
        held: list[tuple[str, Kind]] = [
            (name, concept.kind) for concept in concepts for name in (*self.safe[concept], *concept.preserve)
        ]
        self.names.read(concepts, held)

    def problems(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        """Return the problems that remove the concepts.

        Raises:
            InputError: A target lies in the span of what is kept.
        """
        problems = tuple(self._problem(concepts, space) for space in self.names.spaces)
        for rows in problems:
            self._check_free(joined_rows([rows]))
        return self.names.calibrated(problems)

    def _problem(self, concepts: Sequence[Concept], space: str) -> Rows:
        names = self.names
        erased: list[Row] = []
        held = names.empty(self.eraser.invariants, space)
        for concept in concepts:
            proxies = {name: names.held(name, concept.kind, space) for name in self.safe[concept]}
            targets = names.erased(concept, space)
            erased += [self._aimed(row, proxies) for row in targets]
            held += [row for name in concept.preserve for row in names.held(name, concept.kind, space)]
            if self.eraser.keep_proxies:
                held += [*(row for rows in proxies.values() for row in rows), *map(_kept, targets)]
        return Rows.of(
            erased,
            list({row.key: row for row in held}.values()),
            reg=self.eraser.ridge,
            dim=names.width(space),
            space=space,
            held_rank=self.eraser.keep_rank,
        )

    def _safe(self, concepts: Sequence[Concept]) -> dict[Concept, tuple[str, ...]]:
        """Return the safe concepts of targets, apart from their anchors."""
        safe: dict[Concept, tuple[str, ...]] = {}
        near: dict[Concept, list[str]] = {}
        for concept in concepts:
            taken = {normalized(name) for name in (*concept.names, concept.anchor)}
            safe[concept] = tuple(name for name in self.eraser.safe if normalized(name) not in taken)
            names = [name for name in concept.preserve if normalized(name) not in taken]
            if names and not self.eraser.safe and self.eraser.neighbours:
                near[concept] = names
        ends = EndStates(self.backbone, [text for c, names in near.items() for text in (c.target, *names)])
        for concept, names in near.items():
            graph = ConceptGraph.of(ends, [concept.target, *names])
            nearest = graph.nearest([concept.target], self.eraser.neighbours)
            safe[concept] = tuple(name for name, _ in nearest)
        return safe

    def _aimed(self, row: Row, proxies: dict[str, list[Row]]) -> Row:
        """Return a target's row with its projection on the safe states of the same place as what it becomes."""
        if not self.eraser.proxy or not proxies:
            return row
        states = [row.anchor, *(other.state for rows in proxies.values() for other in rows if other.site == row.site)]
        safe = torch.stack(states).cpu().double()
        label = normalized(", ".join(filter(None, (row.anchor_label, *proxies))))
        return replace(row, anchor_label=label, anchor=_projected(row.state.cpu().double(), safe))

    def _check_free(self, rows: Rows) -> None:
        """Refuse a target that lies in the span of what is kept, for which the edit would be huge."""
        inside = vector_norm(rows.targets @ free_directions(rows), dim=1)
        shares = inside / vector_norm(rows.targets, dim=1)
        if not len(shares) or float(shares.min()) >= self.eraser.least_share:
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
    return safe.T @ (pinv(safe.T) @ state)


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
