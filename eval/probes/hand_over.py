"""Hand-over: the original begins an image, the erased model finishes it (Lu et al., NeurIPS 2025, arXiv:2505.17013)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

from PIL.Image import Image
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.registry import Exactness
from erasure.sampling import sample_part

from .base import Access, Aim, Models, Outcome, Probe, Shares, Subject, Suite


@dataclass(frozen=True, kw_only=True)
class HandOver(Probe):
    """The original runs the first steps under the concept's prompt, the tested model the others under the same prompt.

    No search and no gradient: it shows whether a model that is put on the way still draws the concept, and when in the
    sampling an eraser acts. After many steps the layout stands and every model finishes the concept, so only the excess
    over a model that was never taught it counts.

    Differs from the paper: the dose is a share of the steps, since the number of steps depends on the model.

    Attributes:
        doses: Shares of the steps that the original runs, each in (0, 1).
    """

    name: ClassVar[str] = "hand-over"
    source: ClassVar[str] = "arXiv:2505.17013"
    exactness: ClassVar[Exactness] = "published"
    access: ClassVar[Access] = "image"
    dose_unit: ClassVar[str] = "of the steps by the original"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"quick": {}, "standard": {"doses": (0.04, 0.1, 0.2, 0.4)}, "full": {"doses": (0.04, 0.1, 0.2, 0.3, 0.4, 0.6)}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.25, 0.5)})

    doses: Shares = (0.1, 0.2, 0.4)

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        with models.original() as pipe:
            states = backbone_of(pipe).encode(list(aim.prompts))
            latents, stops, first, start = {}, self._stops(aim), 0, None
            for last in sorted(set(stops)):
                start = latents[last] = cast(
                    "Tensor",
                    sample_part(pipe, states, start, aim.seeds, aim.sampling, first=first, last=last, output="latents"),
                )
                first = last
        return {str(last): value for last, value in latents.items()}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim = subject.aim
        states = subject.backbone.encode(list(aim.prompts))
        for i, (dose, first) in enumerate(zip(self.doses, self._stops(aim), strict=True)):
            label = f"{first} of {aim.sampling.steps} steps"
            subject.report(i, len(self.doses), label)
            start = subject.material[str(first)]
            images = sample_part(subject.pipe, states, start, aim.seeds, aim.sampling, first=first)
            yield Outcome(dose=dose, images=cast("list[Image]", images), label=label)

    def _stops(self, aim: Aim) -> list[int]:
        return [aim.step_after(dose) for dose in self.doses]
