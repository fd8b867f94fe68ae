"""A selector of the first layers that an eraser trains."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from erasure.registry import Exactness
from erasure.training.context import TrainingTask
from erasure.training.selectors import Selector
from erasure.training.selectors.base import Selection


@dataclass(frozen=True, kw_only=True)
class AddedSelector(Selector):
    """The first weights in the order of the model.

    Attributes:
        count: Number of weights, > 0.
    """

    name: ClassVar[str] = "added-selector"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    count: Annotated[int, Field(ge=1)] = 2

    def selected(self, task: TrainingTask) -> Selection:
        return Selection(names=frozenset(list(task.backbone.parameters(task.trained))[: self.count]))
