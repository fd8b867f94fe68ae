"""Noise on the trajectory: DDIM's ancestral noise (arXiv:2010.02502; as an attack: arXiv:2505.17013)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, cast

from PIL.Image import Image
from pydantic import Field

from erasure.errors import InputError
from erasure.registry import Exactness
from erasure.sampling import sample_part

from .base import Access, Outcome, Probe, Subject, Suite

Eta = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class NoiseEta(Probe):
    """The plain prompt with noise added at each step, at the seeds of the plain prompt; no best of many is picked.

    Differs from the paper: eta stays within DDIM's range, as beyond 1 the variance of a step is negative and the
    released code takes the root of its absolute value; nor are the images selected by the judge.

    Attributes:
        doses: Values of eta, each in (0, 1].
    """

    name: ClassVar[str] = "noise-eta"
    source: ClassVar[str] = "arXiv:2505.17013"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "sampler"
    dose_unit: ClassVar[str] = "eta"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (0.5, 1.0)})

    doses: Annotated[tuple[Eta, ...], Field(min_length=1)] = (0.5, 1.0)

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim = subject.aim
        scheduler = type(subject.pipe.scheduler).__name__
        if not scheduler.startswith("DDIM"):
            raise InputError(f"noise-eta: expected a DDIM scheduler, got {scheduler}. Others have no eta.")
        states = subject.backbone.encode(list(aim.prompts))
        for i, dose in enumerate(self.doses):
            subject.report(i, len(self.doses), f"eta {dose:g}")
            images = sample_part(subject.pipe, states, None, aim.seeds, aim.sampling, eta=dose)
            yield Outcome(dose=dose, images=cast("list[Image]", images))
