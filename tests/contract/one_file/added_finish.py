"""A finish that weakens an edit."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from erasure.backbones import Backbone
from erasure.edits import WeightEdit
from erasure.edits.finish import Finish
from erasure.registry import Exactness


@dataclass(frozen=True, kw_only=True)
class AddedFinish(Finish):
    """The edit times a factor.

    Attributes:
        factor: Factor of the change, > 0; 1 leaves the edit as it is.
    """

    name: ClassVar[str] = "added-finish"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    factor: Annotated[float, Field(gt=0)] = 0.5

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        return edit if self.factor == 1 else edit.scaled(self.factor)
