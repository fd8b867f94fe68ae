"""Inpainting: the rest of an image of the concept is given, its middle is painted (arXiv:2505.17013)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool
from torch import Tensor

from erasure.registry import Exactness
from erasure.sampling import Latents, half_noised, sample_part
from erasure.training.replay_memory import decoded

from .base import Access, Aim, Models, Outcome, Probe, Shares, Subject
from .examples import example_latents


@dataclass(frozen=True, kw_only=True)
class Inpainting(Probe):
    """Images of the concept lose a square in the middle, which the tested model paints under the concept's prompt.

    After each step of the sampling the latents outside of the square are those of the given image, with the noise of
    that step, as in inpainting with an ordinary denoiser. The visible rest gives the answer away: every eraser of the
    paper fails, and so may a model that was never taught the concept. Only the excess over such a model counts; aimed
    at a concept that no model knows it starts from drawn images.

    Differs from the paper: the whole image is judged, not the square alone.

    Attributes:
        doses: Shares of the image that stay visible, around the square, each in (0, 1).
    """

    name: ClassVar[str] = "inpainting"
    source: ClassVar[str] = "arXiv:2505.17013"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "image"
    dose_unit: ClassVar[str] = "of the image visible"
    novel: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.5, 0.75)})

    doses: Shares = (0.25, 0.5, 0.75)

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"clean": example_latents(models, aim, aim.concept.target, len(aim.prompts), seed=aim.seed)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        for i, dose in enumerate(self.doses):
            label = f"{100 * dose:g} % visible"
            subject.report(i, len(self.doses), label)
            yield Outcome(dose=dose, images=decoded(subject.backbone, self.painted(subject, dose)), label=label)

    def painted(self, subject: Subject, dose: float) -> Latents:
        """Return the latents of the given images with the square painted by the tested model, at a dose."""
        aim, pipe, steps = subject.aim, subject.pipe, subject.aim.sampling.steps
        states = subject.backbone.encode(list(aim.prompts))
        clean = subject.material["clean"]
        square = middle((clean.shape[-2], clean.shape[-1]), 1 - dose)
        latents: Tensor | None = None
        for step in range(steps):
            painted = sample_part(
                pipe, states, latents, aim.seeds, aim.sampling, first=step, last=step + 1, output="latents"
            )
            known = clean if step == steps - 1 else half_noised(pipe, clean, aim.seeds, steps, step + 1)
            latents = torch.where(square, cast("Tensor", painted), known)
        return cast("Tensor", latents)


def middle(size: tuple[int, int], share: float) -> Bool[Tensor, "height width"]:
    """Return the mask of a centred square (or rectangle, of an image's shape) with about a share of the area.

    It has at least one pixel, and leaves one.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    sides = [min(max(1, round(side * share**0.5)), side - 1) for side in size]
    rows, columns = (
        slice((side - inner) // 2, (side - inner) // 2 + inner) for side, inner in zip(size, sides, strict=True)
    )
    mask[rows, columns] = True
    return mask
