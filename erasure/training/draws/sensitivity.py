"""Sensitivities of a model's weights: the Fisher of kept predictions, mean gradients of erasing losses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ...concept import Concept
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Loss, below
from ..replay import gradients_of
from ..student import Student
from .noised_images import NoisedImages, erasing_loss


def prediction_fisher(task: TrainingTask, samples: int) -> dict[str, Tensor]:
    """Return the diagonal Fisher of the reference's predictions on the task's pool, by parameter name, not normalised.

        F = mean over latents x_t and v of (d<eps(x_t, y), v> / d theta)^2,   v random with entries of 1 and -1

    which is the diagonal of J^T J for the Jacobian J of the predictions.
    """
    backbone = task.backbone

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        points = task.pool.select([below(len(task.pool), generator)])
        predicted = student(scheduled_prediction, backbone, *points)
        signs = torch.randint(2, predicted.shape, generator=generator).to(predicted) * 2 - 1
        return (predicted * signs).sum()

    with task.reference():
        return _mean_of(task, loss, samples, square=True)


def erasing_gradients(
    task: TrainingTask, concepts: Sequence[Concept], *, batches: int, images: int, image_steps: int
) -> dict[str, Tensor]:
    """Return the mean gradient of the plain erasing loss of some concepts at the reference, by parameter name.

    Args:
        task: Training.
        concepts: Concepts to erase; of the task, or preserved ones, which their erasure would move.
        batches: Batches of four noised images, > 0.
        images: Images of each concept, > 0.
        image_steps: Sampling steps of an image, > 0.
    """
    noised = NoisedImages(task.context, concepts, images=images, image_steps=image_steps, early=0.7)
    loss = erasing_loss(replace(task, requests=concepts), noised)
    with task.reference():
        return _mean_of(task, loss, batches, square=False)


def _mean_of(task: TrainingTask, loss: Loss, draws: int, *, square: bool) -> dict[str, Tensor]:
    """Return the mean over draws of a loss's gradient, or of its square, by parameter name."""
    generator = torch.Generator().manual_seed(task.context.seed)
    student = Student(task.backbone, task.trained, None, generator)
    totals: Mapping[str, Tensor] = {leaf.name: torch.zeros_like(each) for leaf, each in student.leaves.items()}
    for _ in range(draws):
        for total, gradient in zip(totals.values(), gradients_of(student, loss, generator), strict=True):
            if gradient is not None:
                total += (gradient.square() if square else gradient) / draws
    return {name: total.detach() for name, total in totals.items()}
