"""Image-to-image: an image of the concept, noised and finished by the erased model (SDEdit, arXiv:2108.01073)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

from PIL.Image import Image
from torch import Tensor

from erasure.registry import Exactness
from erasure.sampling import half_noised, sample_part

from .base import Access, Aim, Models, Outcome, Probe, Shares, Subject, Suite
from .examples import example_latents


@dataclass(frozen=True, kw_only=True)
class Img2Img(Probe):
    """Images of the concept are noised by a strength, and the tested model samples on under the concept's prompt.

    At a low strength every model returns the image, at a high one only knowledge draws the concept: what counts is the
    excess over a model that was never taught it. Aimed at a concept that no model knows it starts from drawn images.

    Attributes:
        doses: Shares of the steps that the image saves, 1 - strength, each in (0, 1); the more the easier.
    """

    name: ClassVar[str] = "img2img"
    source: ClassVar[str] = "arXiv:2108.01073"
    exactness: ClassVar[Exactness] = "published"
    access: ClassVar[Access] = "image"
    dose_unit: ClassVar[str] = "1 - strength"
    novel: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"quick": {}, "standard": {"doses": (0.1, 0.2, 0.3, 0.5)}, "full": {"doses": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.25, 0.5)})

    doses: Shares = (0.1, 0.3)

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"clean": example_latents(models, aim, aim.concept.target, len(aim.prompts), seed=aim.seed)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, steps = subject.aim, subject.aim.sampling.steps
        states = subject.backbone.encode(list(aim.prompts))
        for i, dose in enumerate(self.doses):
            first = aim.step_after(dose)
            label = f"strength {1 - dose:.2g}"
            subject.report(i, len(self.doses), label)
            start = half_noised(subject.pipe, subject.material["clean"], aim.seeds, steps, first)
            images = sample_part(subject.pipe, states, start, aim.seeds, aim.sampling, first=first)
            yield Outcome(dose=dose, images=cast("list[Image]", images), label=label)
