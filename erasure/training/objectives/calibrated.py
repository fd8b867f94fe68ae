"""CATNIP's calibrated negative preference (arXiv:2602.02824), carried over to denoisers."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...losses.preference import advantage, calibrated_negative, scale_of_confidence
from ...registry import Exactness
from ..context import TrainingTask
from ..draws.noised_images import NoisedDraw, NoisedImages, read_by, reference_reads, squared_errors
from ..student import Student
from .noised import Measure, NoisedObjective

_CALIBRATION_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Calibrated(NoisedObjective):
    """A push away from the target at each pixel in proportion to how sure the model is of it.

        logit p_u = tau (e_a(u; theta_0) - e_c(u; theta)),   L = mean_u (2 / beta) softplus(beta logit p_u)

    e_y(u) is the squared error of eps(x_t, y) against the noise eps at pixel u of the latents (h w), mean over
    channels; c is the target's prompt and a the anchor's, read by the reference without gradient. tau, 1 / (squared
    latents), is found once. The slope in logit p_u is 2 sigmoid(beta logit p_u): what is forgotten is left alone.

    Differs from the paper: a pixel of a noised image stands for a token, and the anchor's explanation for the model's
    own complement.

    Attributes:
        beta: Sharpness, > 0; 1 is plain unlikelihood -2 log(1 - p).
        confidence: Mean of p at the start over the pixels that the target's prompt explains better, in (0.5, 1).
        pull: Weight of tau |eps(x_t, c) - eps_0(x_t, a)|^2, which says where to go instead, >= 0.
    """

    name: ClassVar[str] = "calibrated"
    source: ClassVar[str] = "arXiv:2602.02824"
    exactness: ClassVar[Exactness] = "reconstructed"

    beta: Annotated[float, Field(gt=0)] = 1.0
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    pull: Annotated[float, Field(ge=0)] = 0.0

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        tau = confidence_scale(task, images, self.confidence)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            anchor = reference_reads(task, batch, batch.anchors)
            named = read_by(student, task.backbone, batch, batch.named)
            value = calibrated_negative(tau * advantage(named, anchor, batch.truth), self.beta)
            return value + self.pull * tau * squared_errors(named, anchor) if self.pull else value

        return measure


def confidence_scale(task: TrainingTask, images: NoisedImages, confidence: float = 0.9) -> float:
    """Return tau, with which the reference is as sure of the target's images as `confidence` says."""
    generator = torch.Generator().manual_seed(task.context.seed)
    batch = images.noised([i % len(images.prompts) for i in range(_CALIBRATION_IMAGES)], generator)
    named, anchor = (reference_reads(task, batch, prompts) for prompts in (batch.named, batch.anchors))
    return scale_of_confidence(advantage(named, anchor, batch.truth), confidence)
