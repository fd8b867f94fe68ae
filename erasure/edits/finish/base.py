"""The interface of a finish: a change of a fitted edit."""

from abc import abstractmethod
from dataclasses import dataclass

from ...backbones.base import Backbone
from ...registry import Plugin
from ..weight_edit import WeightEdit


@dataclass(frozen=True, kw_only=True)
class Finish(Plugin):
    """A change of a fitted edit, with a neutral setting that leaves it as it is."""

    @abstractmethod
    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        """Return the finished edit. Its rows are dropped if and only if its change is no longer their solution."""
