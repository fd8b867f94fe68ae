"""KUDA's deviation of representations (arXiv:2602.19275), with MCU's minor components (arXiv:2605.11685)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.features import LayerFeatures, MinorComponents, likeness
from ..draws.noised_images import NoisedDraw, NoisedImages
from ..student import Student
from .noised import Measure, NoisedObjective


@dataclass(frozen=True, kw_only=True)
class Deviate(NoisedObjective):
    """A deviation of what cross-attention writes from its place, wherever it leads.

        L = mean_{l, u} softplus(kappa cos(h_l(u; c) - m_l, h0_l(u; c) - m_l)) / kappa

    h_l is the output (pixels, channels) of layer l with trained weights, h0_l the reference's, m_l its pixel mean.
    With `minor` both sides lose the mean and the main directions of the target's features first, so that the change
    goes into the minor ones, which relearning is slow to undo.

    Differs from the paper: the outputs of cross-attention stand for the hidden states of a language model's layers.

    Attributes:
        kappa: Sharpness, > 0.
        jitter: Noise on the reference's features as a share of their deviation over pixels, > 0: a cosine has no
            gradient where both sides are equal, as they are at the start.
            Differs from the paper: none there.
        minor: Number of main directions to leave out, the mean among them, >= 0.
        max_pixels: Largest layer, in pixels; None takes all.
    """

    name: ClassVar[str] = "deviate"
    source: ClassVar[str] = "arXiv:2602.19275"
    exactness: ClassVar[Exactness] = "reconstructed"

    kappa: Annotated[float, Field(gt=0)] = 5.0
    jitter: Annotated[float, Field(gt=0)] = 0.05
    minor: Annotated[int, Field(ge=0)] = 0
    max_pixels: Annotated[int, Field(ge=1)] | None = None

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        features = LayerFeatures.of(task, self.max_pixels)
        outside = MinorComponents(features, images, self.minor)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            before = features.reference(batch, batch.named)
            parts = []
            for layer, output in features.student(student, batch, batch.named).items():
                spread = self.jitter * before[layer].std(1, keepdim=True)
                noise = torch.randn(output.shape, generator=generator).to(output)
                place = before[layer] + spread * noise
                parts.append(deviation(outside(layer, output), outside(layer, place), self.kappa))
            return torch.stack(parts).mean(0)

        return measure


def deviation(
    output: Float[Tensor, "n pixels channels"], before: Float[Tensor, "n pixels channels"], kappa: float
) -> Float[Tensor, " n"]:
    """Return one layer's part of the loss, for each image."""
    return F.softplus(kappa * likeness(output, before)).mean(1) / kappa
