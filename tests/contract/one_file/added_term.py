"""A term that holds the layers that read text where they are."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.registry import Exactness
from erasure.training.context import TrainingTask
from erasure.training.finetune import Loss
from erasure.training.student import Student
from erasure.training.terms import Term


@dataclass(frozen=True, kw_only=True)
class AddedTerm(Term):
    """Zero, whatever the student is."""

    name: ClassVar[str] = "added-term"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    reads: ClassVar[Literal["encoder", "text", "any"]] = "any"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        read = backbone.encode(["a house"])
        latents = torch.ones(1, *backbone.latent_shape())

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            return 0 * student(backbone.predict, latents, torch.tensor([1]), read).float().square().mean()

        return loss
