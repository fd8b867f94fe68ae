"""Directions in the outputs of cross-attention: means with a concept less means without it (CASteer)."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.attention import cross_attention_layers
from ...backbones.base import Backbone
from ...backbones.layer_readings import layer_outputs
from ...concept import Concept, Kind
from ...errors import InputError
from ...prompts import GENERIC, anchored, fill, speaks_of, templates
from ...sampling.latents import noise, trajectory_latents
from ..trajectories import TrajectoryPoints, encoded
from .layer_inputs import inside
from .masked import Mask, concept_masks

_NO_LENGTH = 1e-6  # of a difference against a mean output: rounding
# As in the code: an object beside something, a style, and an addition for people and safety.
_BESIDE: Mapping[Kind, str] = {
    "object": "{} with {}",
    "style": "{}, {} style",
    "identity": "{}, {}",
    "unsafe": "{}, {}",
}
Directions = Mapping[str, Float[Tensor, "steps channels"]]


class Pair(NamedTuple):
    """A prompt with a concept and the same prompt without it.

    Attributes:
        named: Prompt with the concept.
        without: Prompt without it, or with its anchor.
        word: Name of the concept in the first.
    """

    named: str
    without: str
    word: str


class OutputMeans:
    """Mean outputs of each layer and step over prompts with a concept and over those without it, of one start code.

    Args:
        backbone: Model.
        steps: Number of sampling steps, > 0.
        stops: Steps that are read.
        guidance_scale: Scale of classifier-free guidance.
        mask: Pixels that are read: those that attend to the concept's name, or all ("none").
        seed: Seed of the start code, >= 0.
    """

    def __init__(
        self, backbone: Backbone, *, steps: int, stops: Sequence[int], guidance_scale: float, mask: Mask, seed: int
    ) -> None:
        self._backbone, self._steps, self._stops, self._scale = backbone, steps, stops, guidance_scale
        self._mask: Mask = mask
        self._layers = tuple(cross_attention_layers(backbone))
        self._start = noise([torch.Generator().manual_seed(seed)], backbone.latent_shape())
        self._sums: dict[tuple[str, int, int], Tensor] = {}
        self._counts: dict[tuple[str, int, int], int] = {}

    def add(self, pairs: Sequence[Pair]) -> None:
        """Read the outputs of some pairs."""
        sides = ([pair.named for pair in pairs], [pair.without for pair in pairs])
        trajectories = [self._trajectories(prompts) for prompts in sides]
        for i, both in enumerate(zip(*trajectories, strict=True)):
            masks = concept_masks(self._backbone, both[0], [pair.word for pair in pairs], self._mask)
            for side, points in enumerate(both):
                read = (points.latents, points.timesteps, points.conditioning)
                for layer, output in layer_outputs(self._backbone, self._layers, *read).items():
                    rows = output[inside(output, masks)].to("cpu", torch.float64)
                    key = (layer, side, i)
                    self._sums[key] = self._sums.get(key, torch.zeros(())) + rows.sum(0)
                    self._counts[key] = self._counts.get(key, 0) + len(rows)

    def _trajectories(self, prompts: Sequence[str]) -> list[TrajectoryPoints]:
        """Return the latents of the prompts' trajectories at each stop."""
        read = encoded(self._backbone, prompts)
        latents = trajectory_latents(
            self._backbone,
            self._start.expand(len(prompts), -1, -1, -1),
            read,
            self._backbone.unconditional(),
            steps=self._steps,
            guidance_scale=self._scale,
            stops=self._stops,
        )
        timesteps = self._backbone.schedule.timesteps(self._steps).to(self._backbone.device)
        return [
            TrajectoryPoints(latents=latents[stop], timesteps=timesteps[stop].repeat(len(prompts)), conditioning=read)
            for stop in self._stops
        ]

    def directions(self, concept: Concept, *, averaged: bool) -> Directions:
        """Return the unit directions by layer, one a step, or one from the mean over the steps.

        Raises:
            InputError: The outputs are the same with and without the concept.
        """
        steps = range(len(self._stops))
        directions: dict[str, Tensor] = {}
        for layer in self._layers:
            sides = [
                torch.stack([self._sums[layer, side, i] / self._counts[layer, side, i] for i in steps])
                for side in (0, 1)
            ]
            whole = sides[0] - sides[1]
            if averaged:
                whole = whole.mean(0, keepdim=True)
            lengths = whole.norm(dim=-1, keepdim=True)
            if not bool((lengths > _NO_LENGTH * sides[0].norm(dim=-1, keepdim=True).mean()).all()):
                raise InputError(
                    f"casteer: expected prompts whose outputs tell of the concept, got the same with {concept.target!r}"
                    f" and with {concept.anchor or 'nothing'!r} in layer {layer}. Name another target or anchor."
                )
            directions[layer] = (whole / lengths).float()
        return directions


def prompt_pairs(concept: Concept, form: Literal["published", "templates"], count: int) -> list[Pair]:
    """Return prompts with a concept, each with the prompt without it; names and sentences take turns."""
    if form == "templates":
        sentences = [(template, anchored(template, concept)) for template in templates(concept.kind)]
    else:
        beside = _BESIDE[concept.kind]
        sentences = [
            (beside.replace("{}", thing, 1), beside.format(thing, concept.anchor) if concept.anchor else thing)
            for thing in GENERIC
            if not speaks_of(thing, [concept])
        ]
    names = concept.names
    turns = [(names[(i + i // len(sentences)) % len(names)], sentences[i % len(sentences)]) for i in range(count)]
    return [Pair(named=fill(template, word), without=without, word=word) for word, (template, without) in turns]
