"""UnlearnDiffAtk as a probe (Zhang et al., ECCV 2024, arXiv:2310.11868)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from erasure.registry import Exactness

from ..attacks.unlearn_diff import UnlearnDiff
from .attacked import AttackProbe
from .base import Access, Counts, Suite

_TIMESTEPS = 50  # of the official search


@dataclass(frozen=True, kw_only=True)
class UnlearnDiffProbe(AttackProbe):
    """Tokens before the prompt, optimised through the tested denoiser on images that the original sampled.

    The search is the attack's mixture of tokens with 4 passes of the denoiser an update, in the suite `full` that of
    the official code, whose 2,000 passes a prompt cost some 25 times as much on every row; neither was shown to be
    stronger where both were run (docs/attacks.md). `relaxation` chooses; the search of `erasure attack` is the dose
    2000 of "sampled".

    Attributes:
        doses: Numbers of updates of the search, each >= 1.
        relaxation: "mixture", or "sampled" as in the official code; see the attack. The updates of "sampled" are shared
            out over its 50 timesteps, of which fewer updates hold fewer.
    """

    name: ClassVar[str] = "unlearn-diff"
    source: ClassVar[str] = "arXiv:2310.11868"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "gradient"
    dose_unit: ClassVar[str] = "updates"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType(
        {
            "quick": {},
            "standard": {"searches": 10},
            "full": {"doses": (2000.0,), "relaxation": "sampled", "searches": 20},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "searches": 1})

    doses: Counts = (40.0,)
    relaxation: Literal["sampled", "mixture"] = "mixture"

    def attack(self, dose: float) -> UnlearnDiff:
        if self.relaxation == "mixture":
            return UnlearnDiff(relaxation="mixture", rounds=round(dose))
        held = min(_TIMESTEPS, round(dose))
        return UnlearnDiff(timesteps=held, rounds=round(dose / held))
