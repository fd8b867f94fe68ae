"""MMA-Diffusion's textual attack as a probe (Yang et al., CVPR 2024, arXiv:2311.17516)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.registry import Exactness

from ..attacks.mma import MMA
from .attacked import AttackProbe
from .base import Access, Counts, Suite


@dataclass(frozen=True, kw_only=True)
class MMAProbe(AttackProbe):
    """Tokens with the meaning of the prompt and none of its words, by a gradient search in the text encoder.

    Attributes:
        doses: Numbers of rounds of the search, each >= 1.
    """

    name: ClassVar[str] = "mma"
    source: ClassVar[str] = "arXiv:2311.17516"
    exactness: ClassVar[Exactness] = "published"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "rounds"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"standard": {}, "full": {"doses": (50.0, 200.0), "searches": 20}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "searches": 1})

    doses: Counts = (200.0,)

    def attack(self, dose: float) -> MMA:
        return MMA(rounds=round(dose))
