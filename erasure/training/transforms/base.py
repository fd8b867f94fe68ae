"""The interface of a transform: a correction of the gradients or of the optimiser's step."""

from dataclasses import dataclass
from typing import ClassVar

from ...registry import Plugin
from ..context import TrainingTask
from ..finetune import GradientMap, StepMap


@dataclass(frozen=True, kw_only=True)
class Transform(Plugin):
    """A correction of the gradients before the optimiser's moments, of the step after it, or of both.

    Attributes:
        protects: Whether the map keeps the main gradient from working against the terms:
            <g_e', g_k> >= min(0, <g_e, g_k>). It holds to first order and for the gradient alone, for Adam rescales
            each entry.
    """

    protects: ClassVar[bool] = False

    def prepared(self, task: TrainingTask) -> GradientMap | None:
        """Return the map of the gradients; None for none."""
        return None

    def limiting(self, task: TrainingTask) -> StepMap | None:
        """Return the map of the optimiser's step, exact for every optimiser; None for none."""
        return None
