"""LECO, low-rank concept erasure (code of p1atdev, no paper; the plain form of SPM, arXiv:2312.16145)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from ..backbones.base import Backbone
from ..backbones.sites import Role
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Optimisation, finetune
from ..training.objectives.anchored import Anchored
from .base import Eraser, Work

Where = Literal["blocks", "cross", "not-cross", "self"]

_TEXT: tuple[Role, ...] = ("cross", "joint", "shared")
_ROLES: Mapping[Where, tuple[Role, ...]] = {
    "blocks": (*_TEXT, "self", "ff", "projection"),
    "cross": _TEXT,
    "not-cross": ("self", "ff", "projection"),
    "self": ("self",),
}


def trained_matrices(backbone: Backbone, where: Where) -> frozenset[str]:
    """Return the full names of the weights of a denoiser's blocks that a patch is trained for."""
    sites = backbone.sites(_ROLES[where])
    weights = backbone.parameters(sites.__contains__)
    return frozenset(name for name, weight in weights.items() if weight.ndim > 1)


@dataclass(frozen=True, kw_only=True)
class LECO(Eraser):
    """Low-rank patches of a denoiser's blocks, trained towards the frozen model's negatively guided prediction.

    The formula is that of the objective `erasure.training.objectives.anchored.Anchored` without anchors.

    Differs from the code: patches have no factor alpha / rank, which Adam makes a smaller learning rate of one of
    their sides, and they start from another distribution.

    Attributes:
        negative_guidance: Strength of the erasure (g), >= 0.
        away_from: Prediction that the target's is compared with: "unconditional" or the "anchor"'s.
        rank: Rank of a patch, > 0.
        where: Weights with a patch: all of the transformer "blocks"; the attention to text, "cross"; all but that,
            "not-cross"; or the attention of the image to itself, "self".
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        steps: Number of updates, >= 0.
        lr: Learning rate of AdamW, > 0.
        batch_size: Start codes a step, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0; 1 in the code.
        prompts: "bare" trains on the target's name; "templates" on the name and its aliases in templates.
    """

    name: ClassVar[str] = "leco"
    source: ClassVar[str] = "p1atdev/LECO a93cb46"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "Apache-2.0"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "negative_guidance", "rank")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "lr": 1e-2}

    negative_guidance: Annotated[float, Ge(0)] = 1.0
    away_from: Literal["unconditional", "anchor"] = "unconditional"
    rank: Annotated[int, Ge(1)] = 4
    where: Where = "blocks"
    start_guidance: Annotated[float, Ge(1)] = 3.0
    sample_steps: Annotated[int, Ge(1)] = 50
    steps: Annotated[int, Ge(0)] = 500
    lr: Annotated[float, Gt(0)] = 1e-4
    batch_size: Annotated[int, Ge(1)] = 2
    trajectory_uses: Annotated[int, Ge(1)] = 1
    prompts: PromptForm = "bare"

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        objective = Anchored(
            negative_guidance=self.negative_guidance,
            away_from=self.away_from,
            start_guidance=self.start_guidance,
            sample_steps=self.sample_steps,
            trajectory_uses=self.trajectory_uses,
            prompts=self.prompts,
            anchoring=0.0,
        )
        trained = trained_matrices(context.backbone, self.where).__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, batch_size=self.batch_size)
        changes = finetune(
            context.backbone,
            trained,
            objective.loss(task),
            Optimisation(steps=self.steps, lr=self.lr, rank=self.rank),
            on_progress=context.on_progress,
            seed=context.seed,
        )
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)
