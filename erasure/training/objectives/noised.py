"""The base of objectives that are a mean over noised images of the targets."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..context import TrainingTask
from ..draws.noised_images import NoisedDraw, NoisedImages, read_by, reference_reads, squared_errors
from ..finetune import Loss
from ..student import Student
from .base import Objective

Measure = Callable[[Student, NoisedDraw, int, torch.Generator], Float[Tensor, " n"]]
"""Loss of each image of a batch, from the student, the batch, the step from 0 and the generator of further draws."""


@dataclass(frozen=True, kw_only=True)
class NoisedObjective(Objective):
    """A mean over noised images of the targets, made by the model before the first removal.

    Attributes:
        images: Images of each target, > 0.
        image_steps: Sampling steps of an image, > 0.
        early: Share of the schedule that timesteps are drawn from, the noisiest part, in (0, 1].
    """

    reads_encoder: ClassVar[bool] = True
    weighs_images: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2}

    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25
    early: Annotated[float, Field(gt=0, le=1)] = 0.7

    @abstractmethod
    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        """Return the loss of each image of a batch."""

    def noised(self, task: TrainingTask) -> NoisedImages:
        """Return the images that the loss is a mean over."""
        return NoisedImages(
            task.context, task.concepts, images=self.images, image_steps=self.image_steps, early=self.early
        )

    def loss(self, task: TrainingTask) -> Loss:
        images = self.noised(task)
        measure = self.measure(task, images)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            batch = images.draw(task.batch_size, generator)
            values = measure(student, batch, step, generator)
            return (values * remembered_still(student, batch, task)).mean() if task.unforgotten else values.mean()

        return loss


@torch.no_grad()
def remembered_still(student: Student, batch: NoisedDraw, task: TrainingTask) -> Float[Tensor, " n"]:
    """Return 1 for an image that the target's prompt explains better than the anchor's does for the reference, else 0.

    The two errors are |eps(x_t, c) - eps|^2 and |eps_0(x_t, a) - eps|^2.
    """
    named = squared_errors(read_by(student, task.backbone, batch, batch.named), batch.truth)
    anchors = squared_errors(reference_reads(task, batch, batch.anchors), batch.truth)
    return (named < anchors).to(named)
