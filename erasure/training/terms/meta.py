"""Meta-unlearning against relearning, first-order (arXiv:2410.12777)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.noised_images import NoisedImages, erasing_loss, relearning_loss
from ..finetune import Loss
from ..flatness import leaf_gradients, scaled_to
from ..student import Leaf, Student
from .base import Term


@dataclass(frozen=True, kw_only=True)
class Meta(Term):
    """The erasing loss after some steps of somebody who trains the concept back.

        theta' = theta - sum_k r |theta| g_k / |g_k|,   g_k = grad |eps(x_t, c) - eps|^2 after k steps
        L = |eps(x_t, c; theta') - eps_0(x_t, a)|^2

    The gradient of L is taken at theta' and applied to theta, as in first-order meta-learning (arXiv:1803.02999): it
    moves the weights to where relearning starts from further away. |theta| is the norm of the trained leaves. L is in
    squared predictions, mean over latents; it is the erasing loss itself with `inner_steps` 0.

    Differs from the paper: the anchor's prediction is the aim, where it ascends the denoising loss; its part on benign
    concepts, which are to be lost with the relearned one, is left out.

    Attributes:
        inner_steps: Steps of the relearner, >= 0.
        radius: Length of one such step as a share of |theta|, > 0 (r).
        images: Images of each target, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "meta"
    source: ClassVar[str] = "arXiv:2410.12777"
    exactness: ClassVar[Exactness] = "reconstructed"
    erases: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2}

    inner_steps: Annotated[int, Field(ge=0)] = 2
    radius: Annotated[float, Field(gt=0)] = 0.01
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25

    def loss(self, task: TrainingTask) -> Loss:
        images = NoisedImages(task.context, task.concepts, images=self.images, image_steps=self.image_steps)
        erasing, relearning = erasing_loss(task, images), relearning_loss(task, images)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            offsets = self.relearned(student, relearning, step, generator)
            with student.moved(offsets):
                value = erasing(student, step, generator)
                gradients = student(torch.autograd.grad, value, student.trained, allow_unused=True)
            # A linear function of the leaves with the value and the gradient that the loss has there.
            slopes = [
                (gradient * (leaf - leaf.detach())).sum()
                for gradient, leaf in zip(gradients, student.trained, strict=True)
                if gradient is not None
            ]
            return value.detach() + torch.stack(slopes).sum()

        return loss

    def relearned(
        self, student: Student, relearning: Loss, step: int, generator: torch.Generator
    ) -> dict[Leaf, Tensor]:
        """Return the offsets of the leaves after the relearner's steps."""
        leaves = {leaf: each.detach() for leaf, each in student.leaves.items()}
        length = self.radius * float(torch.stack([each.square().sum() for each in leaves.values()]).sum().sqrt())
        offsets = {leaf: torch.zeros_like(each) for leaf, each in leaves.items()}
        for _ in range(self.inner_steps):
            with student.moved(offsets):
                gradients = leaf_gradients(student, relearning, step, generator)
            descent = scaled_to(gradients, length)
            offsets = {leaf: offset - descent[leaf] for leaf, offset in offsets.items()}
        return offsets
