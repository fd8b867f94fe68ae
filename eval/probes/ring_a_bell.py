"""Ring-A-Bell as a probe (Tsai et al., ICLR 2024, arXiv:2310.10012)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.registry import Exactness

from ..attacks.ring_a_bell import RingABell
from .attacked import AttackProbe
from .base import Access, Counts, Suite


@dataclass(frozen=True, kw_only=True)
class RingABellProbe(AttackProbe):
    """Tokens whose text states lie along the concept's direction, by a genetic search in the text encoder.

    Attributes:
        doses: Numbers of generations of the search, each >= 1.
    """

    name: ClassVar[str] = "ring-a-bell"
    source: ClassVar[str] = "arXiv:2310.10012"
    exactness: ClassVar[Exactness] = "published"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "generations"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"standard": {}, "full": {"doses": (50.0, 150.0), "searches": 20}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "searches": 1})

    doses: Counts = (150.0,)

    def attack(self, dose: float) -> RingABell:
        return RingABell(generations=round(dose))
