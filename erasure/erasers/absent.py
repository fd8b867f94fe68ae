"""Absent: distillation of the world without a concept (ours)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..backbones.sites import has_role
from ..concept import Concept
from ..edits import DenseChange, LowRankChange, WeightEdit
from ..registry import Chosen, Exactness
from ..training.context import FitContext, TrainingTask
from ..training.finetune import Optimisation
from ..training.objectives import Objective
from ..training.objectives.absent import AbsentWorld
from ..training.shape import Shape
from ..training.student import Student
from .base import Eraser, Work

_NOT_TRAINED = ("time",)  # noise levels are no concept's, and every prediction reads their embedding


@dataclass(frozen=True, kw_only=True)
class Absent(Eraser):
    """Fine-tuning of the whole denoiser towards predictions as if the concept had never been taught.

    The formula is that of the objective `erasure.training.objectives.absent.AbsentWorld`.

    Attributes:
        objective: Main loss; its settings are those of the method.
        shape: Further terms, transforms, selector and finishes.
        steps: Number of updates, >= 0.
        lr: Learning rate of Adam, > 0.
        cosine: Whether the learning rate falls to 0 along a cosine, so that the last updates average out what the draws
            of single batches moved; else it is constant.
        batch_size: Latents a step, > 0.
        clip_norm: Largest norm of the gradient, > 0.
        pull: Decay of what was learned towards the weights before the fit, in units of the learning rate, >= 0: it
            undoes what only the noise of the draws moved, from which what stays suffers.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
    """

    name: ClassVar[str] = "absent"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr")
    together: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {
        "steps": 2,
        "lr": 1e-3,
        "batch_size": 4,
        "objective": {"name": "absent", "images": 2, "kept_images": 2, "sample_steps": 2},
    }

    objective: Chosen[Objective] = field(default_factory=AbsentWorld)
    shape: Shape = field(default_factory=Shape)
    steps: Annotated[int, Field(ge=0)] = 400
    lr: Annotated[float, Field(gt=0)] = 1e-5
    cosine: bool = False
    batch_size: Annotated[int, Field(ge=1)] = 12
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    pull: Annotated[float, Field(ge=0)] = 0.0
    rank: Annotated[int, Field(ge=1)] | None = None

    @property
    def finds_anchors(self) -> bool:
        return isinstance(self.objective, AbsentWorld) and self.objective.instead == "anchor"

    def completed(self, concepts: Sequence[Concept], context: FitContext) -> Sequence[Concept]:
        if isinstance(self.objective, AbsentWorld):
            return self.objective.anchored(self.task(concepts, context))
        return concepts

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        concepts = self.completed(concepts, context)
        task = self.task(concepts, context)
        return self.shape.finished(
            WeightEdit(changes=self.learned(task), metadata=self.metadata(concepts, context)), task
        )

    def task(self, concepts: Sequence[Concept], context: FitContext) -> TrainingTask:
        """Return the training of a fit."""
        sites = context.backbone.sites()
        trained = frozenset(name for name, site in sites.items() if not has_role(site, _NOT_TRAINED))
        return TrainingTask(
            context=context,
            requests=concepts,
            trained=trained.__contains__,
            reference=context.before_parts,
            batch_size=self.batch_size,
        )

    def learned(
        self, task: TrainingTask, stop: Callable[[Student, int], bool] | None = None
    ) -> dict[str, DenseChange | LowRankChange]:
        """Return the changes that the training learns.

        Args:
            task: Training of a fit.
            stop: Called after each update with the number of updates made; True ends the training.
        """
        optimisation = Optimisation(
            steps=self.steps,
            lr=self.lr,
            restarts=int(self.cosine),
            rank=self.rank,
            optimizer="adam",
            clip_norm=self.clip_norm,
            pull=self.pull,
        )
        return self.shape.train(task, self.objective, optimisation, stop=stop)
