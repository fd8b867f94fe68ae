"""Attention drift: what an edit does to the attention maps of what was removed and of what stands beside it.

Reconstructed from A-STAR's two diagnoses (arXiv:2306.14544: overlap and decay), which the paper turns into losses; as
numbers about an edited model they are this project's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import AttentionCapture, average_maps
from erasure.errors import InputError
from erasure.losses.attention import binarised, overlap, soft_iou
from erasure.progress import OnProgress, ProgressCounter
from erasure.sampling import noise, trajectory_latents

from ..stats.scores import Score, Setup

UNITS = {
    "mass_removed": ("share of attention", False),
    "mass_beside": ("share of attention", True),
    "overlap": ("soft IoU", False),
    "retention_removed": ("Dice", False),
    "retention_beside": ("Dice", True),
}
"""Each index with its unit and whether more is better."""


@dataclass(frozen=True, kw_only=True)
class DriftPrompt:
    """A prompt that names what was removed and something beside it, by words as they stand in the prompt.

    Attributes:
        prompt: "a photo of a cat and a tree".
        removed: "cat".
        beside: "tree".
        seed: Of the noise.
    """

    prompt: str
    removed: str
    beside: str
    seed: int


def overlap_index(removed: Float[Tensor, "steps h w"], beside: Float[Tensor, "steps h w"]) -> Float[Tensor, ""]:
    """Return the soft IoU of two concepts' maps, each brought to a maximum of 1, averaged over the steps."""
    return soft_iou(_normalised(removed), _normalised(beside)).mean()


def retention_index(maps: Float[Tensor, "steps h w"]) -> Float[Tensor, ""]:
    """Return how much of its region a concept keeps from step to step: 2 sum min(A, B) / sum (A + B), averaged.

    A is the map of a step, brought to a maximum of 1, B the region of the step before it (at least half its maximum).
    1 is a map that stays equal to a region; eq. 3's term is 1 - half of this.

    Raises:
        InputError: There are fewer than two steps.
    """
    if len(maps) < 2:
        raise InputError(f"attention_drift: expected maps of at least 2 steps, got {len(maps)}. Raise places.")
    regions = binarised(maps[:-1]).to(maps.dtype)
    return 2 * overlap(_normalised(maps[1:]), regions).mean()


def _normalised(maps: Float[Tensor, "steps h w"]) -> Float[Tensor, "steps h w"]:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass(kw_only=True)
class AttentionDrift:
    """Streaming indices of one model, over its own trajectories; keeps five numbers a prompt.

    The maps are those of the conditional prediction at some places of the model's own guided DDIM trajectory, the mean
    of heads and of all layers of one size. What stands beside what was removed should keep mass and region; neither
    should move into the other. A removed object's words lose mass. A style's need not: they hold hardly any to begin
    with, and an edit that takes the style out through them may leave them more.

    Attributes:
        pipe: The pipeline, with whatever is in force on it.
        steps: Of the trajectory.
        guidance_scale: Of classifier-free guidance.
        negative_prompt: In place of the unconditional prompt; "" is the model's own.
        places: How many steps are looked at, spread evenly, at least 2.
        size: Rows and columns of the maps: 16 x 16 is A-STAR's for Stable Diffusion 1.x, and the tiny world's finest.
    """

    pipe: Any
    steps: int = 20
    guidance_scale: float = 4.0
    negative_prompt: str = ""
    places: int = 6
    size: tuple[int, int] = (16, 16)
    _values: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in UNITS}, init=False, repr=False
    )

    def update(self, prompts: Sequence[DriftPrompt], on_progress: OnProgress | None = None) -> "AttentionDrift":
        """Follow the model on some prompts, one at a time.

        Raises:
            InputError: A prompt does not hold its words, or there are fewer than two places.
        """
        backbone = backbone_of(self.pipe)
        count = ProgressCounter(on_progress, len(prompts), "attention")
        for prompt in prompts:
            removed, beside = self._maps(backbone, prompt)
            self._values["mass_removed"].append(float(removed.mean()))
            self._values["mass_beside"].append(float(beside.mean()))
            self._values["overlap"].append(float(overlap_index(removed, beside)))
            self._values["retention_removed"].append(float(retention_index(removed)))
            self._values["retention_beside"].append(float(retention_index(beside)))
            count.add()
        return self

    def compute(self) -> dict[str, Score]:
        """Return the mean of each index over all prompts so far."""
        return {
            name: Score.mean(self._values[name], unit=unit, higher_is_better=higher, setup=self.setup(name))
            for name, (unit, higher) in UNITS.items()
        }

    def setup(self, name: str) -> Setup:
        """Return what is measured by an index."""
        return Setup(metric=f"attention_{name}", resize=f"maps of {self.size[0]} x {self.size[1]}")

    @torch.no_grad()
    def _maps(
        self, backbone: Backbone, prompt: DriftPrompt
    ) -> tuple[Float[Tensor, "places h w"], Float[Tensor, "places h w"]]:
        states = backbone.encode([prompt.prompt])
        words = [states.word_positions(0, phrase) for phrase in (prompt.removed, prompt.beside)]
        at = torch.linspace(0, self.steps - 1, min(self.places, self.steps)).round().int().tolist()
        found = trajectory_latents(
            backbone,
            noise([torch.Generator().manual_seed(prompt.seed)], backbone.latent_shape()),
            states,
            backbone.encode([self.negative_prompt]) if self.negative_prompt else backbone.unconditional(),
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            stops=at,
        )
        timesteps = backbone.schedule.timesteps(self.steps)
        maps = []
        for place in at:
            with AttentionCapture(backbone=backbone, tokens=[*words[0], *words[1]]) as capture:
                backbone.predict(found[place], timesteps[place], states)
            maps.append(average_maps(capture.maps, *self.size)[0])
        stacked = torch.stack(maps)
        return stacked[:, : len(words[0])].sum(1), stacked[:, len(words[0]) :].sum(1)
