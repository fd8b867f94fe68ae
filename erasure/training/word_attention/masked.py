"""MACE's second part: images of a concept, regions of its words, and the loss of attention inside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones.attention import AttentionCapture
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...losses.attention import binarised
from ...sampling import noise, trajectory_latents
from ..student import Student
from ..trajectories import TrajectoryPoints

Mask = Literal["attention", "none"]
"""Pixels of the loss: those where the words' own attention is at least half of its maximum, or all."""

_SAMPLE_STEPS, _GUIDANCE_SCALE = 20, 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class WordImages:
    """Images of a concept by the model itself.

    Attributes:
        latents: Clean latents.
        conditioning: Prompts, a row each.
        tokens: Positions of the concept's tokens in each prompt.
        masks: Region of the concept in each image, at the size of the latents.
    """

    latents: Float[Tensor, "n c h w"]
    conditioning: Conditioning
    tokens: tuple[tuple[int, ...], ...]
    masks: Bool[Tensor, "n h w"]


@torch.no_grad()
def word_images(
    backbone: Backbone,
    prompts: Sequence[tuple[str, str]],
    generator: torch.Generator,
    *,
    mask: Mask,
    trailing: bool,
    timestep: int,
) -> WordImages:
    """Sample images of prompts and find the concept in them.

    Args:
        backbone: Model.
        prompts: Prompts, each with the name in it.
        generator: Source of noise.
        mask: Rule of the regions.
        trailing: Whether the end of text and all positions after it count among the concept's tokens.
        timestep: Noise level at which attention is read for the regions.
    """
    read = backbone.encode([prompt for prompt, _ in prompts])
    noises = noise([generator] * len(prompts), backbone.latent_shape())
    last = _SAMPLE_STEPS - 1
    latents = trajectory_latents(
        backbone,
        noises,
        read,
        backbone.unconditional(),
        steps=_SAMPLE_STEPS,
        guidance_scale=_GUIDANCE_SCALE,
        stops=[last],
    )[last]
    words = [tuple(read.word_positions(row, name)) for row, (_, name) in enumerate(prompts)]
    levels = torch.full((len(prompts),), timestep, device=latents.device)
    noised = backbone.schedule.noised(latents, noises.to(latents), levels)
    places = TrajectoryPoints(latents=noised, timesteps=levels, conditioning=read)
    masks = concept_masks(backbone, places, [name for _, name in prompts], mask)
    length = read.states.shape[1]
    tokens = tuple(
        (*positions, *range(int(read.eot[row]), length)) if trailing else positions
        for row, positions in enumerate(words)
    )
    return WordImages(latents=latents, conditioning=read, tokens=tokens, masks=masks)


@torch.no_grad()
def concept_masks(
    backbone: Backbone, places: TrajectoryPoints, names: Sequence[str], mask: Mask
) -> Bool[Tensor, "n h w"]:
    """Return where each latent's concept is, by attention to its name in the prompt, or everywhere."""
    n, _, height, width = places.latents.shape
    masks = torch.ones(n, height, width, dtype=torch.bool, device=places.latents.device)
    for row in range(n if mask == "attention" else 0):
        read = places.conditioning.select([row])
        capture = AttentionCapture(backbone=backbone, tokens=read.word_positions(0, names[row % len(names)]))
        maps = capture.read(places.latents[row : row + 1], places.timesteps[row], read)
        masks[row] = binarised(mean_map(maps, height, width))[0]
    return masks


def masked_attention(
    maps: Mapping[str, Float[Tensor, "1 heads pixels tokens"]],
    mask: Bool[Tensor, "h w"],
    norm: Literal["norm", "squared"],
) -> Float[Tensor, ""]:
    """Return the sum over layers of |A * mask|_F, or of its square (eq. 3 of MACE)."""
    total = torch.zeros((), device=mask.device)
    for layer in maps.values():
        rows, columns = sides(layer.shape[2], *mask.shape)
        inside = F.interpolate(mask[None, None].float(), (rows, columns), mode="nearest") > 0.5
        square = (layer * inside.flatten()[:, None]).square().sum()
        # The norm has no gradient at zero, where a region of some layer may vanish.
        total = total + (square if norm == "squared" else square.clamp(min=1e-12).sqrt())
    return total


def attention_of(
    student: Student, backbone: Backbone, images: WordImages, row: int, timestep: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the maps of a concept's tokens in one of its images with fresh noise, by the student."""
    clean = images.latents[row : row + 1]
    level = torch.tensor(timestep, device=clean.device)
    latents = backbone.schedule.noised(clean, noise([generator], backbone.latent_shape()).to(clean), level)
    capture = AttentionCapture(backbone=backbone, tokens=images.tokens[row])
    return student(capture.read, latents, level, images.conditioning.select([row]))


def focal_density(total: int, first: float, last: float, slope: float) -> Float[Tensor, " total"]:
    """Return the density over timesteps of concept-focal importance sampling (eq. 5 of MACE), which sums to 1.

    Proportional to sigmoid(slope (t - first)) - sigmoid(slope (t - last)).
    """
    t = torch.arange(total, dtype=torch.float64)
    density = torch.sigmoid(slope * (t - first)) - torch.sigmoid(slope * (t - last))
    return density / density.sum()


def mean_map(
    maps: Mapping[str, Float[Tensor, "n heads pixels tokens"]], height: int, width: int
) -> Float[Tensor, "n h w"]:
    """Return the mean map over layers, heads and tokens at one size."""
    layers = []
    for layer in maps.values():
        rows, columns = sides(layer.shape[2], height, width)
        mean = layer.mean(dim=(1, 3)).unflatten(1, (rows, columns))[:, None]
        layers.append(F.interpolate(mean, (height, width), mode="bilinear")[:, 0])
    return torch.stack(layers).mean(dim=0)


def sides(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return the sides of a layer's map of so many pixels, for latents of the given size."""
    rows = round((pixels * height / width) ** 0.5)
    return rows, pixels // rows
