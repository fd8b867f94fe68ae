"""Extrapolation of an edit: KNOW, learning from oblivion (arXiv:2508.05059)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ...backbones.base import Backbone
from ...registry import Exactness
from ..weight_edit import WeightEdit
from .base import Finish


@dataclass(frozen=True, kw_only=True)
class Extrapolate(Finish):
    """A linear step beyond the edit: theta_0 + (1 + factor) (theta - theta_0).

    Differs from the paper: its learned predictor of weights needs a set of forgetting runs; the linear form is its
    first-order limit.

    Attributes:
        factor: Step beyond the edit as a share of it, >= -1; 0 leaves the edit as it is, less weakens it.
    """

    name: ClassVar[str] = "extrapolate"
    source: ClassVar[str] = "arXiv:2508.05059"
    exactness: ClassVar[Exactness] = "reconstructed"

    factor: Annotated[float, Field(ge=-1)] = 0.2

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        return edit if self.factor == 0 else edit.scaled(1 + self.factor)
