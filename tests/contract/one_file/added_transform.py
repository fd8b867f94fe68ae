"""A transform that halves the optimiser's step."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from erasure.registry import Exactness
from erasure.training.context import TrainingTask
from erasure.training.finetune import Gradient, StepMap
from erasure.training.transforms import Transform


@dataclass(frozen=True, kw_only=True)
class AddedTransform(Transform):
    """The optimiser's step times a factor.

    Attributes:
        factor: Factor of the step, >= 0.
    """

    name: ClassVar[str] = "added-transform"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    factor: Annotated[float, Field(ge=0)] = 0.5

    def limiting(self, task: TrainingTask) -> StepMap:
        def scaled(step: Gradient) -> Gradient:
            return {leaf: self.factor * change for leaf, change in step.items()}

        return scaled
