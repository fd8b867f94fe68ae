"""ANT, auto-steering of denoising trajectories (Li et al., ACM MM 2025, arXiv:2504.12782).

Abstract, figures and parts of the paper, and a description of the official code (commit 78ce8f3), are the sources.
Nothing here is copied from that code, whose licence is non-commercial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..concept import Concept
from ..edits import WeightEdit
from ..errors import InputError
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Optimisation
from ..training.objectives.reversal import Reversal
from ..training.selectors.gradient import GradientSaliency
from ..training.shape import Shape
from .base import Eraser, Work

Release = Literal["paper", "single", "several"]


@dataclass(frozen=True, kw_only=True)
class ANT(Eraser):
    """Fine-tuning that keeps the guidance towards the target early in the denoising and reverses it late.

    The loss, and its differences from the paper, are those of the objective
    `erasure.training.objectives.reversal.Reversal`.

    Attributes:
        release: Source of the settings. "paper": those of the trainer of one concept, in the order of the paper.
            "single": that trainer, which keeps the last steps and reverses the ones before. "several": the trainer of
            many concepts, whose patches of rank 64 learn for ten steps; it has the order of the paper.
        keep_until: Share of the sampler's steps whose guidance is kept, in [0, 1].
        order: End of the denoising that is kept: the "early" steps or the "late" ones.
        keep_weight: Weight of the kept steps (a_1), >= 0.
        hold_weight: Weight of the empty prompt (a_2), >= 0.
        negative_guidance: Strength of the guidance that is kept and reversed (eta), >= -1.
        prediction_guidance: Scale of the guidance inside the predictions, > 0.
        denoiser: Model of the trajectories: the "student", the model under training, or the "frozen" one.
        start_guidance: Scale of classifier-free guidance of the trajectories, >= 1.
        sample_steps: Steps of their schedule, > 0.
        trajectory_uses: Updates fed by one trajectory, > 0.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        mask_share: Share of the entries that is trained, by their gradient of a plain erasure, in (0, 1]; None, or a
            selector in `shape.sites`, has no such mask.
        mask: Trained entries: those with the "largest" gradients of all weights, as in the paper, or with the
            "smallest" of each weight, as in the script.
        steps: Number of updates, >= 0.
        lr: Learning rate of Adam, > 0.
        batch_size: Start codes a step, > 0.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
        shape: Further terms, transforms, selector and finishes (ours).
    """

    name: ClassVar[str] = "ant"
    source: ClassVar[str] = "arXiv:2504.12782"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "non-commercial"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "keep_until", "lr")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "keep_until": 0.4, "mask_share": None}
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "release": {
            "single": {"order": "late", "mask": "smallest"},
            "several": {
                "keep_until": 0.08,
                "keep_weight": 0.5,
                "hold_weight": 2.5,
                "prediction_guidance": 7.5,
                "denoiser": "frozen",
                "mask_share": None,
                "steps": 10,
                "rank": 64,
            },
        }
    }

    release: Release = "paper"
    keep_until: Annotated[float, Field(ge=0, le=1)] = 0.14
    order: Literal["early", "late"] = "early"
    keep_weight: Annotated[float, Field(ge=0)] = 1.0
    hold_weight: Annotated[float, Field(ge=0)] = 0.5
    negative_guidance: Annotated[float, Field(ge=-1)] = 1.0
    prediction_guidance: Annotated[float, Field(gt=0)] = 1.0
    denoiser: Literal["student", "frozen"] = "student"
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    mask_share: Annotated[float, Field(gt=0, le=1)] | None = 0.5
    mask: Literal["largest", "smallest"] = "largest"
    steps: Annotated[int, Field(ge=0)] = 250
    lr: Annotated[float, Field(gt=0)] = 5e-4
    batch_size: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] | None = None
    shape: Shape = field(default_factory=Shape)

    def __post_init__(self) -> None:
        _ = self._objective  # refuses a loss of nothing now
        if self.rank is not None and self.mask_share is not None and self.shape.sites is None:
            raise InputError(
                f"ant.mask_share: expected None with a rank, got {self.mask_share!r}. A mask is of single entries."
            )

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = backbone.sites().__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, batch_size=self.batch_size)
        optimisation = Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, optimizer="adam")
        changes = self._shape.train(task, self._objective, optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    @property
    def _shape(self) -> Shape:
        """The shape with the mask as its selector."""
        if self.mask_share is None or self.shape.sites is not None:
            return self.shape
        mask = GradientSaliency(kind="entry", share=self.mask_share, end=self.mask, alpha=0.0)
        return replace(self.shape, sites=mask)

    @property
    def _objective(self) -> Reversal:
        return Reversal(
            keep_until=self.keep_until,
            order=self.order,
            keep_weight=self.keep_weight,
            hold_weight=self.hold_weight,
            negative_guidance=self.negative_guidance,
            prediction_guidance=self.prediction_guidance,
            denoiser=self.denoiser,
            start_guidance=self.start_guidance,
            sample_steps=self.sample_steps,
            trajectory_uses=self.trajectory_uses,
            prompts=self.prompts,
        )
