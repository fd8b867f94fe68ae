"""SPEED: an edit confined to the null space of what is kept (Li et al., ICLR 2026, arXiv:2503.07392)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones.base import Backbone
from ..closed_form.caption_statistics import square_root
from ..closed_form.joint import joined_rows
from ..closed_form.names import NameReader, Wording
from ..closed_form.problem import Row, Rows
from ..closed_form.projections import Projections, projection_gram, projections
from ..closed_form.readers import EmptyAnchor, TrailingStates
from ..closed_form.solve import solve
from ..concept import Concept
from ..edits import Change, DenseChange, LowRankChange, WeightEdit
from ..errors import InputError
from ..progress import Progress
from ..registry import Exactness
from ..training.context import FitContext
from ..typed_torch import integers, solve_linear, svd, vector_norm
from .base import Dependence
from .shared_map import SharedMap


@dataclass(frozen=True, kw_only=True)
class SPEED(SharedMap):
    """Closed-form edit of the value projections that may not touch the directions of what is kept.

    With text states c of targets, a of anchors, r of what is kept and k of the empty prompt, and means over the
    targets, it minimises (eq. 10)

        mean_i |(W + D P) c_i - W a_i|^2 + ridge |D P|^2    subject to D P k = 0,

    where P projects on the eigenvectors of mean_j r_j r_j^T with an eigenvalue below `threshold`. The solution is
    W' = W N with one N for all layers, as long as P is one for all.

    Two forms:

    - "shared" (ours): one P from all that is kept, so that the edit takes part in a ledger's joint solve. With
      `filtered`, what is kept is filtered by its shift in all layers together.
    - "layers", as published: for each layer W the kept states are filtered by influence (eq. 5, 6: those that the edit
      without P, W (A - T) (I + T)^-1, shifts by more than the mean), then `augment` copies of each are drawn, moved
      along the direction that W maps to its smallest output (eq. 7 to 9), and filtered likewise.

    Differs from the official code (commit 6d3df0c), in both forms: the draws are filtered by their mean over all of
    them, not over a chunk of 128 states; the three centres of the empty prompt's states start from runs of successive
    states, not from random ones; no concept is a special case (theirs takes other positions for "nudity"). Published is
    `form="layers", rows="last-subject", empty_anchor="start"`.

    Attributes:
        form: One map for all layers, "shared", or one a layer, "layers"; see above.
        rows: Text states that are rows.
        trailing_states: Number of trailing states of a prompt, 1 to 512, unless `rows` is "last-subject".
        threshold: Eigenvalue from which a direction of what is kept is held, >= 0; 1e-4 for many celebrities in the
            paper.
        ridge: Pull towards the old weights, > 0 (rho in the code); 0.05 for celebrities, 0.7 for nudity there.
        ridge_invariants: Slack of the constraint on the empty prompt, >= 0 (lambda); 0 is exact, 0.5 is for nudity.
        invariants: Number of centres of the empty prompt's states after the start of text that are held, >= 0.
        filtered: Whether what is kept is filtered by influence.
        augment: Number of copies of each kept state, >= 0 (N_A); with "layers" alone.
        sites: Layers that are edited; "values" in the paper.
        empty_anchor: State of the empty prompt that stands for the name where that prompt is the anchor.
    """

    name: ClassVar[str] = "speed"
    source: ClassVar[str] = "arXiv:2503.07392"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "Apache-2.0"
    depends_on: ClassVar[Dependence] = "text"
    main: ClassVar[tuple[str, ...]] = ("threshold", "ridge")
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "form": {"layers": {"filtered": True, "augment": 10}}
    }

    form: Literal["shared", "layers"] = "shared"
    rows: Wording = "name"
    trailing_states: TrailingStates = 4
    threshold: Annotated[float, Ge(0)] = 0.1
    ridge: Annotated[float, Gt(0)] = 1.0
    ridge_invariants: Annotated[float, Ge(0)] = 0.0
    invariants: Annotated[int, Ge(0)] = 3
    filtered: bool = False
    augment: Annotated[int, Ge(0)] = 0
    sites: Projections = "values"
    empty_anchor: EmptyAnchor = "end"

    def __post_init__(self) -> None:
        if self.form == "shared" and self.augment:
            raise InputError(
                f"speed.augment: expected 0 with the form 'shared', got {self.augment!r}. Set form to 'layers'."
            )

    @property
    def dependence(self) -> Dependence:
        if self.form == "layers":
            return "weights"
        return "base" if self.filtered else "text"

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        if self.form == "shared":
            return super().fit(concepts, context)
        self.require(concepts, context.backbone)
        return WeightEdit(changes=self._layers(concepts, context), metadata=self.metadata(concepts, context))

    def projections(self, backbone: Backbone, space: str) -> list[str]:
        return projections(backbone, self.sites, space)

    def reader(self, context: FitContext) -> "SPEEDReader":
        if self.form == "layers":
            raise InputError("speed.form: expected 'shared' for one map of all layers, got 'layers'.")
        return self._reader(context)

    def _reader(self, context: FitContext) -> "SPEEDReader":
        names = NameReader(
            context.backbone,
            wording=self.rows,
            trailing_states=self.trailing_states,
            empty_anchor=self.empty_anchor,
        )
        return SPEEDReader(self, context.backbone, names)

    def _layers(self, concepts: Sequence[Concept], context: FitContext) -> dict[str, Change]:
        generator = torch.Generator().manual_seed(context.seed)
        reader = self._reader(context)
        reader.read([concepts])
        problems = [joined_rows([rows]) for rows in reader.unfiltered(concepts)]
        layers = [(rows, name) for rows in problems for name in self.projections(context.backbone, rows.space)]
        weights = context.backbone.parameters({name for _, name in layers}.__contains__)
        changes: dict[str, Change] = {}
        for done, (rows, name) in enumerate(layers, 1):
            weight = weights[name].detach().to("cpu", torch.float64)
            solved = solve(self._refined(rows, weight[:, : rows.targets.shape[1]], generator))
            factors = solved.factors_of(weight, leading=True)
            if factors is None:
                changes[name] = DenseChange(delta=solved.change_of(weight, leading=True).float())
            else:
                changes[name] = LowRankChange(up=factors[0].float(), down=factors[1].float().contiguous())
            if context.on_progress is not None:
                context.on_progress(Progress(done=done, total=len(layers)))
        return changes

    def _refined(self, rows: Rows, weight: Float[Tensor, "out dim"], generator: torch.Generator) -> Rows:
        """Return the rows with the kept states that one layer's edit would shift, and copies of them."""
        kept = _filtered(rows, weight) if self.filtered else rows
        named = _named(kept)
        if not self.augment or not bool(named.any()):
            return kept
        direction = svd(weight).Vh[-1]
        states = kept.preserve[named].repeat_interleave(self.augment, dim=0)
        noise = torch.randn(states.shape, generator=generator, dtype=torch.float64)
        drawn = states + (noise @ direction)[:, None] * direction
        copies = [
            Row(label="copy", site=f"{i}|", state=state, weight=float("inf"), anchor_label="copy", anchor=state)
            for i, state in enumerate(drawn)
        ]
        if self.filtered:
            shifts = _shifts(rows, weight, drawn)
            copies = [copy for copy, shift in zip(copies, shifts, strict=True) if shift > shifts.mean()]
        return kept.with_rows(kept=[*kept.kept_rows(), *copies])


@dataclass(frozen=True)
class SPEEDReader:
    """Reader of SPEED's problems; see `ProblemReader`."""

    eraser: SPEED
    backbone: Backbone
    names: NameReader

    def read(self, requests: Sequence[Sequence[Concept]]) -> None:
        concepts = [concept for request in requests for concept in request]
        self.names.read(concepts, ((name, concept.kind) for concept in concepts for name in concept.preserve))

    def problems(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        problems, filtered = self.unfiltered(concepts), self.eraser.filtered
        return tuple(_filtered(r, self._roots[r.space]) if filtered and _named(r).any() else r for r in problems)

    def unfiltered(self, concepts: Sequence[Concept]) -> tuple[Rows, ...]:
        """Return the problems with all that is kept."""
        return self.names.calibrated(tuple(self._problem(concepts, space) for space in self.names.spaces))

    def _problem(self, concepts: Sequence[Concept], space: str) -> Rows:
        eraser, names = self.eraser, self.names
        erased = [row for concept in concepts for row in names.erased(concept, space)]
        held = (row for c in concepts for name in c.preserve for row in names.held(name, c.kind, space))
        kept = {row.key: row for row in held}
        # (1 / lambda) |D P k|^2 beside the mean over the targets, which is their sum here.
        slack = sum(row.weight for row in erased) / eraser.ridge_invariants if eraser.ridge_invariants else float("inf")
        return Rows.of(
            erased,
            [*kept.values(), *names.empty(eraser.invariants, space, slack)],
            reg=0.0,
            dim=names.width(space),
            space=space,
            reg_each=eraser.ridge,
            threshold=eraser.threshold,
        )

    @cached_property
    def _roots(self) -> dict[str, Tensor]:
        """Rows that stand for the weights of all layers of a stream, by its name."""
        layers = {space: self.eraser.projections(self.backbone, space) for space in self.names.spaces}
        return {space: square_root(projection_gram(self.backbone, names)) for space, names in layers.items()}


def _named(rows: Rows) -> Bool[Tensor, " m"]:
    """Return which preserved rows are of names: those of the empty prompt are held in any case."""
    return torch.tensor([label != "" for label in rows.preserve_labels], dtype=torch.bool)


def _shifts(rows: Rows, weight: Float[Tensor, "out dim"], states: Float[Tensor, "m dim"]) -> Float[Tensor, " m"]:
    """Return the length by which the edit that only erases, W (A - T) (I + T)^-1, shifts the outputs of states."""
    share = rows.weights / rows.weights.sum()
    second = (rows.targets * share[:, None]).T @ rows.targets
    cross = (rows.goals() * share[:, None]).T @ rows.targets
    eye = torch.eye(len(second), dtype=second.dtype)
    moved = solve_linear(eye + second, states.T)
    return vector_norm(weight @ ((cross - second) @ moved), dim=0)


def _filtered(rows: Rows, weight: Float[Tensor, "out dim"]) -> Rows:
    """Return the rows without the kept names' states that the erasing edit shifts by no more than the mean."""
    named = _named(rows)
    shifts = _shifts(rows, weight, rows.preserve)
    kept = ~named | (shifts > shifts[named].mean())
    indices = integers(kept.nonzero()[:, 0])
    return replace(
        rows,
        preserve=rows.preserve[kept],
        preserve_weights=rows.preserve_weights[kept],
        preserve_labels=tuple(rows.preserve_labels[i] for i in indices),
        preserve_sites=tuple(rows.preserve_sites[i] for i in indices),
    )
