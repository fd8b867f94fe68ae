"""The interface of an objective: the main loss of a trained eraser."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ...registry import Plugin
from ..context import TrainingTask
from ..finetune import Loss


@dataclass(frozen=True, kw_only=True)
class Objective(Plugin):
    """The main loss of a trained eraser: where the predictions for the target should go.

    Attributes:
        reads_encoder: Whether the loss reads its prompts through the text encoder under training.
        weighs_images: Whether the loss is a mean over noised images, each of which can be left out.
    """

    reads_encoder: ClassVar[bool] = False
    weighs_images: ClassVar[bool] = False

    @abstractmethod
    def loss(self, task: TrainingTask) -> Loss:
        """Return the loss."""
