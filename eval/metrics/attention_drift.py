"""Attention drift: changes of the attention maps of a removed concept and of a concept beside it.

Reconstructed from A-STAR's two diagnoses (arXiv:2306.14544: overlap and decay), which the paper turns into losses; as
metrics of an edited model they are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import AttentionCapture, average_maps, layer_pixels
from erasure.errors import InputError
from erasure.losses.attention import binarised, overlap, soft_iou
from erasure.progress import OnProgress, ProgressCounter
from erasure.registry import Exactness
from erasure.sampling import noise, trajectory_latents

from ..stats.scores import Score, Setup
from .base import Feed, Metric

UNITS = {
    "mass_removed": ("share of attention", False),
    "mass_beside": ("share of attention", True),
    "overlap": ("soft IoU", False),
    "retention_removed": ("Dice", False),
    "retention_beside": ("Dice", True),
}
"""Unit of each index, and whether higher is better."""


@dataclass(frozen=True, kw_only=True)
class DriftPrompt:
    """A prompt that names a removed concept and another concept, by words as they stand in the prompt.

    Attributes:
        prompt: The prompt: "a photo of a cat and a tree".
        removed: Word of the removed concept: "cat".
        beside: Word of the other concept: "tree".
        seed: Seed of the noise, >= 0.
    """

    prompt: str
    removed: str
    beside: str
    seed: int


def overlap_index(removed: Float[Tensor, "steps h w"], beside: Float[Tensor, "steps h w"]) -> Float[Tensor, ""]:
    """Return the soft IoU of two concepts' maps, each scaled to a maximum of 1, averaged over the steps."""
    return soft_iou(_normalised(removed), _normalised(beside)).mean()


def retention_index(maps: Float[Tensor, "steps h w"]) -> Float[Tensor, ""]:
    """Return the share of its region that a concept keeps between steps: 2 sum min(A, B) / sum (A + B), averaged.

    A is the map of a step, scaled to a maximum of 1, B the region of the step before it (at least half its maximum).
    The value is 1 for a map that stays equal to a region; eq. 3's term is 1 - half of it.

    Raises:
        InputError: There are fewer than two steps.
    """
    if len(maps) < 2:
        raise InputError(f"attention_drift: expected maps of at least 2 steps, got {len(maps)}. Raise places.")
    regions = binarised(maps[:-1]).to(maps.dtype)
    return 2 * overlap(_normalised(maps[1:]), regions).mean()


def _normalised(maps: Float[Tensor, "steps h w"]) -> Float[Tensor, "steps h w"]:
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def map_size(backbone: Backbone) -> tuple[int, int]:
    """Return rows and columns of the maps to compare: 16 x 16, or the finest that a model without them has.

    16 x 16 is A-STAR's for Stable Diffusion 1.x, and the finest of the tiny world's UNet.
    """
    pixels = set(layer_pixels(backbone).values())
    side = 16 if 16 * 16 in pixels else math.isqrt(max(pixels))
    return side, side


@dataclass(kw_only=True)
class AttentionDrift(Metric):
    """Streaming indices of one model, over its own trajectories; keeps five numbers a prompt.

    The maps are those of the conditional prediction at some steps of the model's own guided DDIM trajectory, the mean
    over heads and all layers of one size. The other concept should keep mass and region, and neither concept should
    move into the other's. A removed object's words lose mass. A style's words need not: they hold little attention
    from the start, and an edit that removes the style through them may increase it.

    Attributes:
        pipe: Pipeline with the edit applied.
        steps: Number of steps of the trajectory.
        guidance_scale: Scale of classifier-free guidance.
        negative_prompt: Replacement of the unconditional prompt; "" is the model's own.
        places: Number of steps whose maps are read, evenly spaced, >= 2.
        size: Rows and columns of the maps; see `map_size`.
    """

    name: ClassVar[str] = "attention"
    source: ClassVar[str] = "arXiv:2306.14544"
    exactness: ClassVar[Exactness] = "reconstructed"
    feed: ClassVar[Feed] = "requests"

    pipe: DiffusionPipeline
    steps: int = 20
    guidance_scale: float = 4.0
    negative_prompt: str = ""
    places: int = 6
    size: tuple[int, int] = (16, 16)
    _values: dict[str, list[float]] = field(
        default_factory=lambda: {name: [] for name in UNITS}, init=False, repr=False
    )

    def update(self, prompts: Sequence[DriftPrompt], on_progress: OnProgress | None = None) -> "AttentionDrift":
        """Add the model's maps for some prompts, one prompt at a time.

        Raises:
            InputError: A prompt does not contain its words, or there are fewer than two places.
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

    def scores(self) -> dict[str, Score]:
        return {f"{self.name}_{index}": score for index, score in self.compute().items()}

    def compute(self) -> dict[str, Score]:
        """Return the mean of each index over all prompts so far."""
        return {
            name: Score.mean(self._values[name], unit=unit, higher_is_better=higher, setup=self.setup(name))
            for name, (unit, higher) in UNITS.items()
        }

    def setup(self, name: str) -> Setup:
        """Return the protocol of an index."""
        return Setup(metric=f"attention_{name}", resize=f"maps of {self.size[0]} x {self.size[1]}")

    @torch.no_grad()
    def _maps(
        self, backbone: Backbone, prompt: DriftPrompt
    ) -> tuple[Float[Tensor, "places h w"], Float[Tensor, "places h w"]]:
        states = backbone.encode([prompt.prompt])
        words = [states.word_positions(0, phrase) for phrase in (prompt.removed, prompt.beside)]
        places = torch.linspace(0, self.steps - 1, min(self.places, self.steps)).round().int().tolist()
        latents = trajectory_latents(
            backbone,
            noise([torch.Generator().manual_seed(prompt.seed)], backbone.latent_shape()),
            states,
            backbone.encode([self.negative_prompt]) if self.negative_prompt else backbone.unconditional(),
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            stops=places,
        )
        timesteps = backbone.schedule.timesteps(self.steps)
        maps = []
        for place in places:
            with AttentionCapture(backbone=backbone, tokens=[*words[0], *words[1]]) as capture:
                backbone.predict(latents[place], timesteps[place], states)
            maps.append(average_maps(capture.maps, *self.size)[0])
        stacked = torch.stack(maps)
        return stacked[:, : len(words[0])].sum(1), stacked[:, len(words[0]) :].sum(1)
