"""UnlearnDiffAtk as a probe (Zhang et al., ECCV 2024, arXiv:2310.11868)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.registry import Exactness

from ..attacks.unlearn_diff import UnlearnDiff
from .attacked import AttackProbe
from .base import Access, Counts, Suite


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffProbe(AttackProbe):
    """Tokens before the prompt, optimised through the tested denoiser on images that the original sampled.

    The search is the attack's mixture of tokens, with 4 passes of the denoiser a round; that of the official code has
    2,000 passes.

    Attributes:
        doses: Numbers of updates of the search, each >= 1.
    """

    name: ClassVar[str] = "unlearn-diff"
    source: ClassVar[str] = "arXiv:2310.11868"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "gradient"
    dose_unit: ClassVar[str] = "rounds"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {"quick": {}, "standard": {"searches": 10}, "full": {"doses": (10.0, 40.0, 160.0), "searches": 20}}
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "searches": 1})

    doses: Counts = (40.0,)

    def attack(self, dose: float) -> UnlearnDiff:
        return UnlearnDiff(relaxation="mixture", rounds=round(dose))
