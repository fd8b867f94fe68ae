"""An objective that predicts the unconditional prompt's noise for the target."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.registry import Exactness
from erasure.training.context import TrainingTask
from erasure.training.finetune import Loss
from erasure.training.objectives import Objective
from erasure.training.student import Student


@dataclass(frozen=True, kw_only=True)
class AddedObjective(Objective):
    """Distance of the prediction for the target to the one for the unconditional prompt, at pure noise."""

    name: ClassVar[str] = "added-objective"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        read, timestep = backbone.encode([task.concepts[0].target]), torch.tensor([500])

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            latents = torch.randn(1, *backbone.latent_shape(), generator=generator)
            with torch.no_grad():
                aim = backbone.predict(latents, timestep, backbone.unconditional())
            return (student(backbone.predict, latents, timestep, read) - aim).float().square().mean()

        return loss
