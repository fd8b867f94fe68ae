"""Attention guidance that keeps erased concepts out of the regions of others."""

from dataclasses import dataclass

import torch

from ..losses.attention import Rule, leak, regions
from .attention import AttentionGuidance, Masks, Terms
from .map_reading import ConceptMaps, Named


@dataclass(frozen=True, kw_only=True)
class LeakLoss(AttentionGuidance):
    """Push of concepts out of their neighbours' regions: the sum of `leak` over the concepts that go.

    One-sided: A-STAR's segregation would also strengthen a concept that is to go wherever it is the stronger of two.

    Attributes:
        erased: Names of those that go; the others that a prompt names are their neighbours.
        region: Rule for the neighbours' regions.
    """

    erased: tuple[str, ...]
    region: Rule = "half"

    def terms(self, maps: ConceptMaps, masks: Masks, named: Named) -> Terms:
        erased = [name in self.erased for name in named.names]
        kept = regions(maps[[not one for one in erased]], self.region).to(maps.dtype)
        return {"leak": torch.stack([leak(one[None], kept[None])[0] for one in maps[erased]]).sum()}

    def low_enough(self, terms: Terms, before: Terms | None, concepts: int, step: int) -> bool:
        return False  # it is never refined
