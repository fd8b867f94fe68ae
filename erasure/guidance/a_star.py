"""A-STAR: test-time attention segregation and retention (Agarwal et al., ICCV 2023, arXiv:2306.14544)."""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal

import torch

from ..losses.attention import Rule, regions, retention, segregation
from ..registry import Exactness
from .attention import AttentionGuidance, Masks, Terms
from .base import ConceptGuidance
from .map_reading import ConceptMaps, Named

# Where refinement ends: InitNO's threshold for a conflict of the same form; and a fall of less than 1 % is none.
_SEGREGATED, _STILL_FALLING = 0.3, 0.99


@dataclass(frozen=True, kw_only=True)
class AStarLoss(AttentionGuidance):
    """Each concept owns its region of the image and keeps it (eq. 4): L = L_seg + L_ret.

        L_seg = sum over pairs of  sum min(A_m, A_n) / sum (A_m + A_n)                                  (eq. 2)
        L_ret = sum over concepts of  1 - sum min(A_m, B_m) / sum (A_m + B_m)                           (eq. 3)

    A are the maps of this step and B the regions of the maps of the step before. From the paper: the losses, their
    equal weights, one update a step, at every step, before the step itself. Reconstructed, since the paper is silent:
    the size of the update, the rule for regions, what is made of the probabilities, and refinement, which is off.

    Attributes:
        segregation_scale: Weight of L_seg.
        retention_scale: Weight of L_ret.
        pairs: "sum" over pairs as in the paper, or their "mean", which does not grow with the number of concepts.
        retention_from: First step of the schedule at which L_ret counts. At 1 it holds the layout of the first maps; a
            later start leaves these time to part.
        region: Rule for B: "half", at least `region_threshold` of the map's maximum, or "otsu".
        region_threshold: For "half", in (0, 1].
    """

    segregation_scale: float = 1.0
    retention_scale: float = 1.0
    pairs: Literal["sum", "mean"] = "sum"
    retention_from: int = 1
    region: Rule = "half"
    region_threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segregation_scale", "retention_scale"):
            self.require(name, getattr(self, name) >= 0, "a number of at least 0", "0 leaves the term out")
        self.require("region_threshold", 0 < self.region_threshold <= 1, "a number in (0, 1]", "the paper has no value")

    def terms(self, maps: ConceptMaps, masks: Masks, named: Named) -> Terms:
        pairs = len(list(combinations(range(len(maps)), 2)))
        share = 1 / pairs if self.pairs == "mean" and pairs else 1.0
        terms = {"segregation": self.segregation_scale * share * segregation(maps[None])[0]}
        if masks:
            kept = sorted(masks)
            held = torch.stack([masks[place] for place in kept])
            terms["retention"] = self.retention_scale * retention(maps[kept][None], held[None])[0]
        return terms

    def masks(self, maps: ConceptMaps, step: int) -> Masks:
        if step + 1 < self.retention_from:
            return {}
        return dict(enumerate(regions(maps, self.region, self.region_threshold).to(maps.dtype)))

    def low_enough(self, terms: Terms, before: Terms | None, concepts: int, step: int) -> bool:
        pairs = max(concepts * (concepts - 1) // 2, 1)
        scale = self.segregation_scale * (1 if self.pairs == "mean" else pairs)
        apart = not scale or float(terms["segregation"]) / scale <= _SEGREGATED
        if before is None or "retention" not in terms or "retention" not in before:
            return apart
        return apart and float(terms["retention"]) >= _STILL_FALLING * float(before["retention"])


@dataclass(frozen=True, kw_only=True)
class AStar(AStarLoss, ConceptGuidance):
    """A-STAR on any pipeline: `AStarLoss` for whichever of the concepts a prompt names.

    with AStar(concepts=("cat", "dog")).applied_to(pipe):
        images = sample(pipe, prompts, seeds)
    """

    name: ClassVar[str] = "a-star"
    source: ClassVar[str] = "arXiv:2306.14544"
    exactness: ClassVar[Exactness] = "published"
