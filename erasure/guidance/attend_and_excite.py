"""Attend-and-Excite (Chefer et al., SIGGRAPH 2023, arXiv:2301.13826): the baseline that A-STAR means to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..losses.attention import neglect
from ..registry import Exactness
from .attention import Masks, Terms
from .base import ConceptGuidance
from .map_reading import ConceptMaps, Named


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(ConceptGuidance):
    """No concept is neglected: the peak of the weakest concept's map is raised (eq. 1), L = 1 - min_m max A_m.

    The defaults are the paper's and its code's: the first half of the schedule is guided, and at steps 0, 10 and 20 of
    50 the update is repeated, at most 20 times, until the weakest peak is at least .05, .5 and .8. Updates of a refined
    step are counted as the code counts them: one where the peak is high from the start, else `refine_updates` + 1 at
    most, and two more after the evaluation that finds it high.
    Differs from the code: the rows of several images are guided each by its own loss.

    Attributes:
        peaks: The peak that ends a refined step, for each of `refine_at`.
    """

    name: ClassVar[str] = "attend-and-excite"
    source: ClassVar[str] = "arXiv:2301.13826"
    exactness: ClassVar[Exactness] = "published"

    steps_range: tuple[float, float] = (0.0, 0.5)
    refine_at: tuple[int, ...] = (0, 10, 20)
    peaks: tuple[float, ...] = (0.05, 0.5, 0.8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            "peaks", len(self.peaks) == len(self.refine_at), "as many as refine_at", "each step has one of its own"
        )

    def terms(self, maps: ConceptMaps, masks: Masks, named: Named) -> Terms:
        return {"neglect": neglect(maps[None])[0]}

    @property
    def most_updates(self) -> int:
        return self.refine_updates + 1

    def updates_again(self, low: Sequence[bool]) -> bool:
        # The code's loop looks at a loss after the update from it, and the regular update of the step follows the loop.
        return len(low) == 1 or not (low[0] or any(low[1:-2]))

    def low_enough(self, terms: Terms, before: Terms | None, concepts: int, step: int) -> bool:
        peak = dict(zip(self.refine_at, self.peaks, strict=True))[step]
        return float(terms["neglect"]) <= 1 - peak
