"""Flat minima: the losses are averaged over weights around those under training."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..registry import Settings
from .context import TrainingTask
from .draws.noised_images import NoisedImages, relearning_loss
from .finetune import Gradient, Loss, Neighbourhood
from .student import Leaf, Student


@dataclass(frozen=True, kw_only=True)
class Flat(Settings):
    """StableUN's training at neighbours of the weights (arXiv:2509.20230, reconstructed), after SAM (arXiv:2010.01412).

    The main loss L is the mean over theta and its neighbours theta + delta,

        delta = -radius |theta| g / |g|,   g = grad |eps(x_t, c) - eps|^2

    with x_t noised images of the target c: the first step of somebody who trains the concept back. `theta` are the
    trained leaves (the factors of patches, with `rank`), and every neighbour has a fresh g.
    Differs from the paper: it ascends the forgetting loss, which is flat once it is bounded.

    Attributes:
        radius: Distance of a neighbour as a share of the norm of the trained leaves, > 0.
        points: Neighbours towards the relearned model, >= 0; each costs a further pass of the loss, and one for g.
        noise: Neighbours in random directions, of the same radius, >= 0.
        keep_too: Whether the terms are averaged likewise.
        images: Images of each target for g, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "flat"

    radius: Annotated[float, Field(gt=0)] = 0.01
    points: Annotated[int, Field(ge=0)] = 1
    noise: Annotated[int, Field(ge=0)] = 0
    keep_too: bool = False
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25

    def neighbourhood(self, task: TrainingTask) -> Neighbourhood:
        """Return the neighbours of a training."""
        images = NoisedImages(task.context, task.concepts, images=self.images, image_steps=self.image_steps)
        return Neighbours(self, relearning_loss(task, images))


class Neighbours(Neighbourhood):
    """Neighbours of the weights as `Flat` sets them, for the gradient of any relearning loss."""

    def __init__(self, settings: Flat, relearning: Loss) -> None:
        self._settings, self._relearning = settings, relearning
        self.keep_too = settings.keep_too

    def offsets(self, student: Student, step: int, generator: torch.Generator) -> list[Gradient]:
        """Return the offsets of the neighbours, each of length `radius |theta|`."""
        settings = self._settings
        length = settings.radius * float(_norm({leaf: each.detach() for leaf, each in student.leaves.items()}))
        towards = [self._descent(student, step, generator) for _ in range(settings.points)]
        random = [
            {leaf: torch.randn(each.shape, generator=generator).to(each) for leaf, each in student.leaves.items()}
            for _ in range(settings.noise)
        ]
        return [scaled_to(direction, length) for direction in (*towards, *random)]

    def _descent(self, student: Student, step: int, generator: torch.Generator) -> dict[Leaf, Tensor]:
        return {
            leaf: -gradient for leaf, gradient in leaf_gradients(student, self._relearning, step, generator).items()
        }


def leaf_gradients(student: Student, loss: Loss, step: int, generator: torch.Generator) -> dict[Leaf, Tensor]:
    """Return the gradient of a loss by every leaf; zeros where the loss has no path to it."""
    value = loss(student, step, generator)
    gradients = student(torch.autograd.grad, value, student.trained, allow_unused=True)
    return {
        leaf: torch.zeros_like(each) if gradient is None else gradient
        for (leaf, each), gradient in zip(student.leaves.items(), gradients, strict=True)
    }


def scaled_to(direction: Gradient, length: float) -> dict[Leaf, Tensor]:
    """Return a direction at a length; one of zeros stays."""
    norm = float(_norm(direction))
    return {leaf: each * (length / norm if norm else 0.0) for leaf, each in direction.items()}


def _norm(direction: Gradient) -> Tensor:
    return torch.stack([each.square().sum() for each in direction.values()]).sum().sqrt()
