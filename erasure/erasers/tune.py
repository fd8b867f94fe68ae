"""An eraser made of pieces: objective, terms, transforms, selector and finishes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Backbone
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Chosen, Exactness
from ..training.context import FitContext, TrainingTask
from ..training.finetune import Optimisation
from ..training.objectives import Objective
from ..training.objectives.guided import Guided
from ..training.selectors.roles import TEXT_ATTENTION
from ..training.shape import Shape
from .base import Eraser, Work


@dataclass(frozen=True, kw_only=True)
class Tune(Eraser):
    """Fine-tuning of attention on an objective, shaped by the pieces that it is given.

    Attributes:
        objective: Main loss; see `erasure.training.objectives`.
        shape: Terms, transforms, selector and finishes.
        steps: Number of updates, >= 0.
        lr: Learning rate, > 0.
        batch_size: Latents a step, > 0.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
        optimizer: "adam" or "adamw".
    """

    name: ClassVar[str] = "tune"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "lr": 1e-3, "objective": {"name": "guided", "sample_steps": 3}}

    objective: Chosen[Objective] = field(default_factory=Guided)
    shape: Shape = field(default_factory=Shape)
    steps: Annotated[int, Field(ge=0)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["adam", "adamw"] = "adam"

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = self._trained(backbone)
        task = TrainingTask(
            context=context,
            requests=concepts,
            trained=trained,
            reference=context.original,
            batch_size=self.batch_size,
        )
        optimisation = Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, optimizer=self.optimizer)
        changes = self.shape.train(task, self.objective, optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def _trained(self, backbone: Backbone) -> Callable[[str], bool]:
        """Return the function that accepts the names of the weights that may be trained."""
        if self.shape.sites is not None and self.shape.sites.of_encoder:
            return lambda name: name.partition(".")[0] in backbone.tokenizers()
        return backbone.sites(TEXT_ATTENTION if self.shape.sites is None else None).__contains__
