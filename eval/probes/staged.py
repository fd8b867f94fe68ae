"""Staged requests: another prompt for a part of the steps (after Sleek, arXiv:2506.17279, for language models)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast

from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.sampling import sample_part

from .base import Access, Outcome, Probe, Shares, Subject, Suite

Order = Literal["neutral first", "neutral last"]


@dataclass(frozen=True, kw_only=True)
class Staged(Probe):
    """A prompt without the concept is read for a share of the steps, the concept's prompt for the others.

    It finds erasers that act at some noise levels only. The neutral prompt names the family, or the plainest sentence
    without the concept.

    Attributes:
        doses: Shares of the steps with the neutral prompt, each in (0, 1).
        orders: Whether the neutral prompt comes first or last.
    """

    name: ClassVar[str] = "staged"
    source: ClassVar[str] = "arXiv:2506.17279"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "sampler"
    dose_unit: ClassVar[str] = "of the steps under a neutral prompt"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.25, 0.5)})

    doses: Shares = (0.1, 0.2, 0.4, 0.6)
    orders: Annotated[tuple[Order, ...], Field(min_length=1)] = ("neutral first", "neutral last")

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone, steps = subject.aim, subject.backbone, subject.aim.sampling.steps
        family = aim.profile.hypernym(aim.concept.target)
        neutral = fill(templates(aim.concept.kind)[2], family) if family else "a photo"
        asking, other = backbone.encode(list(aim.prompts)), backbone.encode([neutral]).expand(len(aim.prompts))
        for order in self.orders:
            for i, dose in enumerate(self.doses):
                subject.report(i, len(self.doses), f"{order}, {dose:g} of the steps")
                n = aim.step_after(dose)
                cut, stages = (n, (other, asking)) if order == "neutral first" else (steps - n, (asking, other))
                half = sample_part(subject.pipe, stages[0], None, aim.seeds, aim.sampling, last=cut, output="latents")
                images = sample_part(subject.pipe, stages[1], cast("Tensor", half), aim.seeds, aim.sampling, first=cut)
                yield Outcome(dose=dose, part=order, images=cast("list[Image]", images), label=f"{n} of {steps} steps")
