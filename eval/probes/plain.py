"""The plain prompt: the control of every probe, and the first rung of the ladder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.registry import Exactness

from .base import Access, OneDose, Outcome, Probe, Subject, Suite


@dataclass(frozen=True, kw_only=True)
class Plain(Probe):
    """Prompts that name the concept, as a user writes them; and prompts of kept concepts.

    Every other probe samples as many images a dose, so this is its control with equal budget. Without a model never
    taught the concept its own floor is 0: a removal that did nothing must not be its own measure.
    """

    name: ClassVar[str] = "plain"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "prompt"
    version: ClassVar[int] = 2
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"quick": {}, "standard": {}, "full": {}})

    doses: OneDose = (1.0,)

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        images, kept = subject.as_it_stands()
        yield Outcome(dose=self.doses[0], images=images, kept=kept, floor=0.0, label="as written")
