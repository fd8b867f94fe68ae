"""Prompts that name a target, each with the anchor's prompt in its place, drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...concept import Concept
from ...prompts import anchored_prompts
from ..finetune import below
from ..trajectories import encoded

PromptForm = Literal["bare", "templates"]
"""The target's name, or the name and its aliases in the templates of the concept's kind."""


@dataclass(frozen=True, kw_only=True)
class PromptPairs:
    """Encoded prompts of concepts.

    Attributes:
        targets: Prompts that name a target.
        anchors: Prompt of the anchor for each; "" is the unconditional prompt.
        counts: Number of prompts of each concept; those of one follow one another.
    """

    targets: Conditioning
    anchors: Conditioning
    counts: tuple[int, ...]

    @classmethod
    def of(cls, backbone: Backbone, concepts: Sequence[Concept], form: PromptForm) -> "PromptPairs":
        """Return the encoded prompts of concepts."""
        pairs = [prompt_pairs(concept, form) for concept in concepts]
        return cls(
            targets=backbone.encode([target for some in pairs for target, _ in some]),
            anchors=encoded(backbone, [anchor for some in pairs for _, anchor in some]),
            counts=tuple(map(len, pairs)),
        )

    def draw(self, generator: torch.Generator) -> int:
        """Return the row of a random prompt of a random concept."""
        concept = below(len(self.counts), generator)
        return sum(self.counts[:concept]) + below(self.counts[concept], generator)


def prompt_pairs(concept: Concept, form: PromptForm) -> list[tuple[str, str]]:
    """Return the prompts that name the target, each with the anchor's prompt."""
    return [(concept.target, concept.anchor)] if form == "bare" else anchored_prompts(concept)
