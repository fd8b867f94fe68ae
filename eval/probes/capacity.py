"""Capacity: the share of the bits that tell names apart which is lost (after arXiv:2404.05405, for language models)."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from erasure.edits.changes import exchanged
from erasure.judge import Judge
from erasure.prompts import fill, templates
from erasure.registry import Exactness
from erasure.sampling import Pair, sample_pairs

from ..stats.allocation import evenly, noise_seed
from .base import Access, Aim, MissingError, Outcome, Probe, Subject
from .quantise import rounded

Bits = Annotated[float, Field(ge=2, le=16, multiple_of=1)]
FULL = 16.0
"""Dose at which the weights stay as they are."""


@dataclass(frozen=True, kw_only=True)
class Capacity(Probe):
    """Share of the bits that tell names apart which is lost, a side effect: erosion beside the name that had to go.

        B_n = max(0, log2(N q_n)),  q_n = (k_n + 1/2) / (m + 1),  lost 1 - B_n / log2(N)

    of each of N known names but the concept and its members, k_n of whose m images show it. The values are read as
    their difference to the original's on the same seeds, so that more is erosion; other removed names count too. It is
    no mutual information, as a model that draws nothing for one name alone still tells it from the others; and
    the paper's law of 2 bits a parameter does not carry over, as N names fill no such model.

    Attributes:
        doses: Bits to which the weights are rounded to nearest, from many to few, each in [2, 16]; 16 leaves them.
        images: Images of each name, > 0.
        names: Number of names that are asked for, evenly spread over the known ones; 0 asks for all.
    """

    name: ClassVar[str] = "capacity"
    source: ClassVar[str] = "arXiv:2404.05405"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "bits a weight"
    version: ClassVar[int] = 2
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (16.0,), "images": 1, "names": 2})

    doses: Annotated[tuple[Bits, ...], Field(min_length=1)] = (16.0, 8.0, 4.0)
    images: Annotated[int, Field(ge=1)] = 10
    names: Annotated[int, Field(ge=0)] = 0

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        if subject.judge is None:
            raise MissingError("a judge of the images")
        known = subject.aim.profile.kept_beside([subject.aim.concept.target])
        names = [name for name in known if subject.judge.knows(name)]
        if len(names) < 2:
            raise MissingError("a model whose names are known: the profile of a world says them")
        names = evenly(names, self.names or len(names))
        for i, dose in enumerate(self.doses):
            label = "as it is" if dose == FULL else f"{dose:g} bits"
            subject.report(i, len(self.doses), label)
            weights = {} if dose == FULL else subject.denoiser_weights
            with exchanged(weights, {name: rounded(p.data, round(dose)) for name, p in weights.items()}):
                hits = self._hits(subject, subject.judge, names)
            values = [1 - bits(k, self.images, len(names)) / math.log2(len(names)) for k in hits]
            yield Outcome(dose=dose, part="lost", values=values, side_effect=True, label=label)

    def _hits(self, subject: Subject, judge: Judge, names: list[str]) -> list[int]:
        """Return the number of images of each name that show it."""
        pairs = [pair for name in names for pair in self._pairs(subject.aim, name)]
        images = sample_pairs(subject.pipe, pairs, subject.aim.sampling)
        by_name = [images[i : i + self.images] for i in range(0, len(images), self.images)]
        return [sum(judge.shows(shown, name)) for name, shown in zip(names, by_name, strict=True)]

    def _pairs(self, aim: Aim, name: str) -> list[Pair]:
        prompts = aim.profile.prompts(name, self.images, aim.seed + 8) or [fill(templates("object")[2], name)]
        return [(prompts[i % len(prompts)], noise_seed(f"capacity {name}", i, aim.seed)) for i in range(self.images)]


def bits(hits: int, images: int, names: int) -> float:
    """Return max(0, log2(N q)) of a name that so many of its images show."""
    return max(0.0, math.log2(names * (hits + 0.5) / (images + 1)))
