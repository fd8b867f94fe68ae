"""The interface of a finish: a change of a fitted edit."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from ...backbones.base import Backbone
from ...registry import Plugin
from ..changes import Change, DenseChange
from ..weight_edit import WeightEdit


@dataclass(frozen=True, kw_only=True)
class Finish(Plugin):
    """A change of a fitted edit, with a neutral setting that leaves it as it is."""

    @abstractmethod
    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        """Return the finished edit. Its rows are dropped if and only if its change is no longer their solution."""


def with_deltas(
    edit: WeightEdit,
    backbone: Backbone,
    finished: Callable[[str, Float[Tensor, "..."]], Float[Tensor, "..."] | None],
) -> WeightEdit:
    """Return an edit whose differences of weights are replaced by functions of them.

    Args:
        edit: Fitted edit.
        backbone: Model that the edit is for, unedited.
        finished: Function of a parameter's name and difference, float64; None leaves the change as it is.
    """
    weights = backbone.parameters(edit.changes.__contains__)
    replaced: Mapping[str, Change] = {
        name: DenseChange(delta=delta.float().cpu())
        for name, change in edit.changes.items()
        if (delta := finished(name, change.of(weights[name].detach()))) is not None
    }
    return replace(edit, changes={**edit.changes, **replaced}, rows=None) if replaced else edit
