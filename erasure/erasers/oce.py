"""OCE: an orthogonal transformation of each value projection (Sun et al., ICML 2026, arXiv:2605.28902).

Known from two notes about the paper and from its official code (commit 2609f3e), which has no licence; nothing here is
copied from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..backbones.conditioning import TEXT
from ..closed_form.caption_statistics import ordinary_moment, read_captions, word_moment
from ..closed_form.joint import joined_rows
from ..closed_form.names import NameReader
from ..closed_form.problem import Rows
from ..closed_form.projections import Projections, projections
from ..closed_form.readers import EmptyAnchor
from ..closed_form.rotation import Form, rotation, span
from ..concept import Concept, Kind
from ..edits import Change, DenseChange, WeightEdit
from ..progress import Progress
from ..prompts import OBJECT_PHRASES, STYLE_PHRASES
from ..registry import Exactness
from ..training.context import FitContext
from ..typed_torch import svd
from .base import Eraser, Stage

# Measured on the tiny world: from here on the mean cosine of W' c and W c over the layers is below 0.
_REFLECTING = 500.0


@dataclass(frozen=True, kw_only=True)
class OCE(Eraser):
    """Turn of the outputs of each value projection: W' = Q W with an orthogonal Q, so that all lengths and angles stay.

    With projectors R on the span of the targets' outputs W c and R_a on that of the anchors' W a, it minimises

        -alpha |Q R - (I - R_a)|_F^2 + |Q W - W|^2 weighted by K = b_g K_g + b_p sum_p p p^T + ridge I,

    K_g the mean of t t^T over the words of ordinary captions. The minimiser is the polar factor of M:

    - "objective": M = W K W^T - alpha (I - R_a) R, which turns targets towards their anchors;
    - "released", the code's and the printed formula: its transpose, which turns them the other way.

    With a strong alpha both are about a reflection of the targets' outputs.

    Differs from the official code: the sign of det Q is left alone (`repair` has theirs, which negates a column of Q
    whatever it stands for); Q moves nothing outside the range of W, so that alpha 0 changes nothing where W has more
    rows than columns; no anchor is filled in by chance; captions are ordinary things, or those of a file. Published is
    `form="released", rows="published", rank=null, alpha=2000, global_scale=10, ridge=10, empty_anchor="start"`.

    Attributes:
        form: Formula of Q, see above.
        rows: Text states of targets and anchors: the last tokens of the names in the code's six prompts, "published",
            of the bare name, "last-subject", or the words and trailing states of templates.
        rank: Number of directions of targets' and of anchors' outputs at most, > 0; None is all.
        alpha: Strength, >= 0; 500 to 3500 in the code.
        global_scale: Weight b_g of the captions, >= 0.
        preserve_scale: Weight b_p of a preserved name, >= 0.
        ridge: Weight of all directions alike, >= 0 (lambda).
        captions: File of ordinary captions, one a line, or CSV with a column "caption" or "prompt"; "" takes everyday
            things and the preserved names.
        sites: Layers that are edited; "values" in the code, keys and values in the paper's text.
        repair: Whether the last column of a Q with a negative determinant is negated, as in the code.
        empty_anchor: State of the empty prompt that stands for the name where that prompt is the anchor.
    """

    name: ClassVar[str] = "oce"
    source: ClassVar[str] = "arXiv:2605.28902"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "none"
    stage: ClassVar[Stage] = "factor of outputs"
    main: ClassVar[tuple[str, ...]] = ("alpha", "form", "rank")
    quick: ClassVar[Mapping[str, Any]] = {"alpha": 300.0}

    form: Form = "objective"
    rows: Literal["templates", "published", "last-subject"] = "templates"
    rank: Annotated[int, Ge(1)] | None = 4
    alpha: Annotated[float, Ge(0)] = 300.0
    global_scale: Annotated[float, Ge(0)] = 10.0
    preserve_scale: Annotated[float, Ge(0)] = 0.0
    ridge: Annotated[float, Ge(0)] = 10.0
    captions: str = ""
    sites: Projections = "values"
    repair: bool = False
    empty_anchor: EmptyAnchor = "end"

    @property
    def reflects(self) -> bool:
        return self.alpha >= _REFLECTING

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        rows = joined_rows([self._rows_of(concepts, context)])
        moment = self.global_scale * self._moment(concepts, context)
        moment = moment + self.preserve_scale * rows.preserve.T @ rows.preserve
        moment.diagonal().add_(self.ridge)
        names = projections(context.backbone, self.sites)
        changes: dict[str, Change] = {}
        for done, (name, parameter) in enumerate(context.backbone.parameters(frozenset(names).__contains__).items(), 1):
            weight = parameter.detach().to("cpu", torch.float64)
            changes[name] = DenseChange(delta=(self.turned(weight, rows, moment) - weight).float())
            if context.on_progress is not None:
                context.on_progress(Progress(done=done, total=len(names)))
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)

    def turned(
        self, weight: Float[Tensor, "out dim"], rows: Rows, moment: Float[Tensor, "dim dim"]
    ) -> Float[Tensor, "out dim"]:
        """Return Q W.

        Args:
            weight: W in float64.
            rows: States of targets and anchors.
            moment: K, the weight of what stays.
        """
        basis, sizes, _ = svd(weight)
        basis = basis[:, sizes > 1e-12 * sizes.max()]
        inside = basis.T @ weight
        target, anchor = (span(states @ inside.T, self.rank) for states in (rows.targets, rows.goals()))
        turn = rotation(target, anchor, inside @ moment @ inside.T, self.alpha, self.form)
        if self.repair:
            whole = (
                torch.eye(len(weight), dtype=weight.dtype) + basis @ (turn - torch.eye(len(turn)).to(turn)) @ basis.T
            )
            if torch.det(whole) < 0:
                whole[:, -1] *= -1
            return whole @ weight
        return basis @ (turn @ inside)

    def _moment(self, concepts: Sequence[Concept], context: FitContext) -> Float[Tensor, "dim dim"]:
        """Return K_g."""
        backbone, folder = context.backbone, context.history.memory
        if not self.captions:
            return ordinary_moment(backbone, concepts, folder=folder)
        return word_moment(backbone, lambda: read_captions(self.captions), folder=folder)

    def _rows_of(self, concepts: Sequence[Concept], context: FitContext) -> Rows:
        style = all(concept.kind == "style" for concept in concepts)
        phrases = (STYLE_PHRASES if style else OBJECT_PHRASES) if self.rows == "published" else ("{}",)
        reader = NameReader(
            context.backbone,
            wording="templates" if self.rows == "templates" else "last-subject",
            empty_anchor=self.empty_anchor,
            phrases=phrases,
        )
        # Of no weight, they need not be read.
        names: list[tuple[str, Kind]] = []
        if self.preserve_scale:
            names = [(name, concept.kind) for concept in concepts for name in concept.preserve]
        reader.read(concepts, names)
        kept = {row.key: row for name, kind in names for row in reader.held(name, kind, TEXT, 1.0)}
        erased = [row for concept in concepts for row in reader.erased(concept, TEXT)]
        return Rows.of(erased, list(kept.values()), reg=1.0, dim=reader.width(TEXT))
