"""Feature replacement, carried over from selective forgetting for reasoning models (arXiv:2604.03571)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.features import LayerFeatures, likeness
from ..draws.noised_images import NoisedDraw, NoisedImages
from ..student import Student
from .noised import Measure, NoisedObjective


@dataclass(frozen=True, kw_only=True)
class Replace(NoisedObjective):
    """The anchor's output of cross-attention where the target is, and the target's own elsewhere.

        L = mean_l [ mean_u |h_l(u; c) - aim_l(u)|^2 / scale_l
                     + repel mean_{u in R} relu(cos(h_l(u; c) - m_l, h0_l(u; c) - m_l)) ]
        aim_l(u) = h0_l(u; a) in R, h0_l(u; c) outside

    h_l is the output (pixels, channels) of layer l, h0_l the reference's, m_l its mean over pixels and scale_l its mean
    square. R is where the reference attends to the target's words, by Otsu's threshold; a style is everywhere.

    Differs from the paper: a region of the image and a stretch of the denoising stand for a segment of a trace.

    Attributes:
        where: "region", as above, or "image", where the anchor's output is the aim at every pixel.
        repel: Weight of the likeness to the target that is left in the region, >= 0 (lam).
        max_pixels: Largest layer, in pixels; None takes all.
    """

    name: ClassVar[str] = "replace"
    source: ClassVar[str] = "arXiv:2604.03571"
    exactness: ClassVar[Exactness] = "reconstructed"

    early: Annotated[float, Field(gt=0, le=1)] = 0.6
    where: Literal["region", "image"] = "region"
    repel: Annotated[float, Field(ge=0)] = 0.1
    max_pixels: Annotated[int, Field(ge=1)] | None = 256

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        features = LayerFeatures.of(task, self.max_pixels)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            targets, anchors = (features.reference(batch, prompts) for prompts in (batch.named, batch.anchors))
            regions = features.regions(batch)
            outputs = features.student(student, batch, batch.named)
            parts = []
            for layer, output in outputs.items():
                region = torch.ones_like(regions[layer]) if self.where == "image" else regions[layer]
                parts.append(replaced(output, targets[layer], anchors[layer], region, self.repel))
            return torch.stack(parts).mean(0)

        return measure


def replaced(
    output: Float[Tensor, "n pixels channels"],
    target: Float[Tensor, "n pixels channels"],
    anchor: Float[Tensor, "n pixels channels"],
    region: Bool[Tensor, "n pixels"],
    repel: float,
) -> Float[Tensor, " n"]:
    """Return one layer's part of the loss, for each image."""
    aim = torch.where(region[..., None], anchor, target)
    distance = (output - aim).square().mean((1, 2)) / target.square().mean((1, 2)).clamp(min=1e-12)
    inside = likeness(output, target).clamp(min=0) * region
    return distance + repel * inside.sum(1) / region.sum(1).clamp(min=1)
