"""RECE: closed-form adversarial rows on top of a closed form (Gong et al., ECCV 2024, arXiv:2407.12383)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT
from ..closed_form.joint import joined_rows
from ..closed_form.names import whole_prompts
from ..closed_form.problem import Row, Rows, TextMap
from ..closed_form.projections import projection_gram
from ..closed_form.solve import solve
from ..concept import Concept
from ..edits import DenseChange, WeightEdit
from ..errors import InputError
from ..progress import Progress
from ..registry import Chosen, Exactness
from ..training.context import FitContext
from ..typed_torch import solve_linear
from .base import Dependence, Eraser
from .shared_map import ProblemReader, SharedMap
from .uce import UCE


@dataclass(frozen=True, kw_only=True)
class RECE(SharedMap):
    """Rows for the states that an edit leaves open: those whose edited outputs are nearest to the target's old ones.

    An edit by one map, W' = W M, leaves a state c' whose output is still that of the target:

        c' = argmin_x sum_W |W M x - W c|^2 + penalty |x|^2 = (penalty I + M^T G M)^-1 M^T G c,   G = sum_W W^T W.

    It is found in closed form and erased too, `rounds` times. The derivation of the code, layer by layer, is this one.

    - "joint" (ours): the rows (c' -> a) join those of the concept, and all are solved for from the original weights. c'
      is derived from the concept's own map, so the rows of a removal do not depend on other removals.
    - "chained", as published: each round solves for its derived rows alone, on top of the last round's weights
      (M_(k+1) = M_k M'), with `preserve_scale` and `reg`; the targets themselves partly return.

    Differs from the official code (commit 403a67f): no round is chosen by a detector's rate on generated images; the
    first edit is UCE's default form. Published are `rows="chained", states="all"` and as the base
    `{name: uce, rows: published, strength: 1, empty_anchor: start}`.

    Attributes:
        base: Eraser of the first edit: one that is a single map of text states (uce, speed, cfe).
        rounds: Number of rounds, >= 0; 3 for nudity in the code, 1 for styles and most objects.
        penalty: Penalty on the length of c', > 0 (lambda); 0.1 for nudity and unsafe concepts, 0.001 for styles.
        rows: Problem that the derived rows are in, see above.
        states: States that c' is derived for: the base's "rows", or "all" positions of the bare name, each paired with
            that of the anchor, as published.
        preserve_scale: Weight of what is preserved in a chained round, >= 0.
        reg: Pull towards the last round's weights in a chained round, > 0.
    """

    name: ClassVar[str] = "rece"
    source: ClassVar[str] = "arXiv:2407.12383"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "Apache-2.0"
    depends_on: ClassVar[Dependence] = "base"
    main: ClassVar[tuple[str, ...]] = ("rounds", "penalty")

    base: Chosen[Eraser] = field(default_factory=UCE)
    rounds: Annotated[int, Ge(0)] = 1
    penalty: Annotated[float, Gt(0)] = 0.1
    rows: Literal["joint", "chained"] = "joint"
    states: Literal["rows", "all"] = "rows"
    preserve_scale: Annotated[float, Ge(0)] = 0.1
    reg: Annotated[float, Gt(0)] = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, SharedMap) or self.base.dependence == "weights":
            raise InputError(
                f"rece.base: expected an eraser that is one map of text states, such as uce, got {self.base.name!r}"
                " with these settings. Use uce, speed in its form 'shared', or cfe."
            )

    @property
    def dependence(self) -> Dependence:
        return "weights" if self.rows == "chained" else "base"

    @property
    def _base(self) -> Any:
        return self.base

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        if self.rows == "joint":
            return super().fit(concepts, context)
        self.require(concepts, context.backbone)
        changes: dict[str, DenseChange] = {}
        for problem in self._base.problems_of(concepts, context):
            names = self.projections(context.backbone, problem.space)
            moved = self._chained(problem, concepts, context, projection_gram(context.backbone, names))
            change = TextMap(u=moved - torch.eye(len(moved), dtype=moved.dtype))
            for name, weight in context.backbone.parameters(frozenset(names).__contains__).items():
                exact = weight.detach().to("cpu", torch.float64)
                changes[name] = DenseChange(delta=change.change_of(exact, leading=True).float())
        if context.on_progress is not None:
            context.on_progress(Progress(done=1, total=1))
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)

    def projections(self, backbone: Backbone, space: str) -> list[str]:
        return self._base.projections(backbone, space)

    def reader(self, context: FitContext) -> "RECEReader":
        return RECEReader(self, self._base.reader(context), context)

    def _chained(
        self, rows: Rows, concepts: Sequence[Concept], context: FitContext, gram: Float[Tensor, "dim dim"]
    ) -> Float[Tensor, "dim dim"]:
        """Return the map after the base's edit and all rounds."""
        problem = joined_rows([rows])
        sources = self.sources(problem, concepts, context)
        kept = [
            row if row.weight == float("inf") else replace(row, weight=self.preserve_scale)
            for row in problem.kept_rows()
        ]
        total = solve(problem).matrix()
        for number in range(self.rounds):
            further = derived_rows(sources, total, gram, self.penalty, number)
            total = total @ solve(Rows.of(further, kept, reg=self.reg, dim=len(gram))).matrix()
        return total

    def sources(self, problem: Rows, concepts: Sequence[Concept], context: FitContext) -> list[Row]:
        """Return the rows whose states are derived; of sentence vectors there is one a prompt in any case."""
        if self.states == "rows" or problem.space != TEXT:
            return problem.erased_rows()
        return [row for concept in concepts for row in whole_prompts(context.backbone, concept)]


@dataclass(frozen=True)
class RECEReader:
    """Reader of RECE's problems: those of the base with the derived rows of all rounds; see `ProblemReader`."""

    eraser: RECE
    base: ProblemReader
    context: FitContext
    _grams: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def read(self, requests: Sequence[Sequence[Concept]]) -> None:
        self.base.read([[concept] for concepts in requests for concept in concepts])

    def problems(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        parts: dict[str, list[Rows]] = {}
        for concept in concepts:
            for rows in self.base.problems([concept]):
                parts.setdefault(rows.space, []).append(self._hardened(rows, concept))
        return tuple(map(joined_rows, parts.values()))

    def _hardened(self, rows: Rows, concept: Concept) -> Rows:
        """Return the rows of one concept with those that are derived from its own map."""
        eraser, problem = self.eraser, joined_rows([rows])
        sources = eraser.sources(problem, [concept], self.context)
        for number in range(eraser.rounds):
            map_ = solve(problem).matrix()
            further = derived_rows(sources, map_, self._gram(rows.space), eraser.penalty, number)
            problem = problem.with_rows(erased=[*problem.erased_rows(), *further])
        return problem

    def _gram(self, space: str) -> Float[Tensor, "dim dim"]:
        if space not in self._grams:
            backbone = self.context.backbone
            self._grams[space] = projection_gram(backbone, self.eraser.projections(backbone, space))
        return self._grams[space]


def derived_rows(
    sources: Sequence[Row],
    moved: Float[Tensor, "dim dim"],
    gram: Float[Tensor, "dim dim"],
    penalty: float,
    number: int,
) -> list[Row]:
    """Return a row for each source: the state that regenerates it through the map M, to become what the source does.

    Args:
        sources: Rows of the targets.
        moved: M.
        gram: G.
        penalty: Penalty on the length of the state, >= 0.
        number: Number of the round, which names the rows.
    """
    if not sources:
        return []
    states = torch.stack([row.state for row in sources]).to("cpu", torch.float64)
    eye = torch.eye(len(gram), dtype=gram.dtype)
    derived = solve_linear(penalty * eye + moved.T @ gram @ moved, moved.T @ gram @ states.T).T
    return [
        replace(row, site=f"{row.site}-derived-{number}", state=state, strength=1.0)
        for row, state in zip(sources, derived, strict=True)
    ]
