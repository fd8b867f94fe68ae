"""The interface of a selector: the weights that a training may change."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ...errors import InputError
from ...registry import Plugin
from ..context import TrainingTask
from ..finetune import Gradient, StepMap
from ..student import Leaf


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Weights that a training may change.

    Attributes:
        names: Full parameter names, a subset of those that the eraser trains.
        masks: Tensors of 0 and 1 by parameter name that broadcast to the weight, by entry or by row; a weight without
            one is trained whole.
    """

    names: frozenset[str]
    masks: Mapping[str, Float[Tensor, "..."]] = field(default_factory=dict)

    def limit(self) -> StepMap | None:
        """Return the map that keeps the optimiser's step inside the masks; None without masks.

        A patch takes masks of rows, on its left factor.

        Raises:
            InputError: The step is of a patch, and its mask of single entries.
        """
        if not self.masks:
            return None

        def inside(step: Gradient) -> Gradient:
            return {
                leaf: change * self._mask(leaf).to(change)
                if leaf.name in self.masks and leaf.part != "down"
                else change
                for leaf, change in step.items()
            }

        return inside

    def _mask(self, leaf: Leaf) -> Float[Tensor, "..."]:
        mask = self.masks[leaf.name]
        if leaf.part != "up":
            return mask
        rows = mask.flatten(1)
        if rows.shape[1] > 1:
            raise InputError(
                f"shape.sites: expected a selector of rows for patches, got single entries of {leaf.name}."
                " Leave rank out, or select rows."
            )
        return rows


@dataclass(frozen=True, kw_only=True)
class Selector(Plugin):
    """A choice of weights among those that an eraser trains.

    Attributes:
        of_encoder: Whether it chooses among the weights of the text encoders, instead of the denoiser's.
    """

    of_encoder: ClassVar[bool] = False

    @abstractmethod
    def selected(self, task: TrainingTask) -> Selection:
        """Return the selection, which is not empty.

        Raises:
            InputError: Nothing that the eraser trains is selected.
        """
