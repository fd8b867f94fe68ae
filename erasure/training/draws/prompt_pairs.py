"""Prompts that name a target, each with the anchor's prompt in its place, drawn at random; latents on their way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from ...concept import Concept
from ...prompts import anchored_prompts
from ..context import TrainingTask
from ..finetune import below
from ..trajectories import Latents, Pairing, PartialTrajectories, encoded

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


@dataclass(frozen=True, kw_only=True, eq=False)
class PairedLatents:
    """Latents of one step of trajectories of targets.

    Attributes:
        latents: Latents.
        timestep: Their timestep.
        rows: Row of each latent's prompt.
        pairs: The prompts.
    """

    latents: Latents
    timestep: Timestep
    rows: list[int]
    pairs: PromptPairs

    @property
    def target(self) -> Conditioning:
        """Prompts that name a target."""
        return self.pairs.targets.select(self.rows)

    @property
    def anchor(self) -> Conditioning:
        """Prompts of the anchors."""
        return self.pairs.anchors.select(self.rows)


class PairedTrajectories:
    """Latents of fresh trajectories of the targets' prompts, which the targets and their anchors are to be read at.

    Args:
        task: Training.
        form: Form of the prompts.
        steps, guidance_scale, uses, pairing, stops: See `PartialTrajectories`.
    """

    def __init__(
        self,
        task: TrainingTask,
        form: PromptForm,
        *,
        steps: int,
        guidance_scale: float,
        uses: int = 1,
        pairing: Pairing = "exact",
        stops: Callable[[torch.Generator], Sequence[int]] | None = None,
    ) -> None:
        self.pairs = PromptPairs.of(task.backbone, task.concepts, form)
        self._trajectories = PartialTrajectories(
            task.backbone,
            self.pairs.targets,
            self.pairs.draw,
            steps=steps,
            guidance_scale=guidance_scale,
            batch_size=task.batch_size,
            uses=uses,
            pairing=pairing,
            stops=stops,
        )

    def next(self, generator: torch.Generator) -> PairedLatents:
        """Return the next batch."""
        latents, timestep, rows = self._trajectories.next(generator)
        return PairedLatents(latents=latents, timestep=timestep, rows=rows, pairs=self.pairs)


def prompt_pairs(concept: Concept, form: PromptForm) -> list[tuple[str, str]]:
    """Return the prompts that name the target, each with the anchor's prompt."""
    return [(concept.target, concept.anchor)] if form == "bare" else anchored_prompts(concept)
