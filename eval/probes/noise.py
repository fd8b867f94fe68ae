"""Noise on the weights: how flat is the removal? (ours; after the robustness tests of StableUN)."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from erasure.edits.changes import exchanged
from erasure.registry import Exactness

from .base import Access, Outcome, Probe, Subject, Suite

Radius = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Noise(Probe):
    """Gaussian noise on every weight of the denoiser with two dimensions and more, at a relative length.

    The noise is the same for every model. Kept concepts are sampled at each dose, as a destroyed model draws nothing.

    Attributes:
        doses: Norms of the noise relative to that of each weight, > 0.
    """

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "weights"
    dose_unit: ClassVar[str] = "of the weights' norm"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"full": {}})

    doses: Annotated[tuple[Radius, ...], Field(min_length=1)] = (1e-2, 3e-2, 1e-1)

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        parameters = subject.denoiser_weights
        for i, dose in enumerate(self.doses):
            subject.report(i, len(self.doses), f"{dose:g}")
            moved = {}
            for name, parameter in parameters.items():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + subject.aim.seed)
                draw = torch.randn(parameter.shape, generator=generator).to(parameter)
                moved[name] = parameter.data + dose * parameter.data.norm() / draw.norm() * draw
            with exchanged(parameters, moved):
                images, kept = subject.sampled(), subject.sampled_kept()
            yield Outcome(dose=dose, images=images, kept=kept)
