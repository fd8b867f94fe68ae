"""Further terms of a trained eraser's loss that keep what stands beside the concept, by name and weight.

A config has them as `eraser: {name: esd, preservation: {attention: 1.0}}`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from .attention import MapCapture
from .backbones.base import Backbone
from .concept import Concept, fill, templates
from .errors import InputError
from .finetune import Loss, Preservation, Student, below
from .guidance.a_star import AStarLoss
from .guidance.attention import MapReading, Named, unwrapped
from .losses.attention import regions, retention
from .sampling import ddim_latents, ddim_timesteps, noise
from .text import TextStates

Term = Literal["attention"]
Weights = Mapping[Term, Annotated[float, Field(ge=0)]]
Reference = Callable[[], AbstractContextManager[object]]

# Enough that no single trajectory is learned by heart, few enough to be made in a moment beside the training.
_TRAJECTORIES, _PLACES, _BATCH = 16, 4, 4
_SAMPLE_STEPS, _GUIDANCE_SCALE = 20, 4.0


def preservations(
    weights: Weights, backbone: Backbone, concepts: Sequence[Concept], *, reference: Reference = nullcontext
) -> list[Preservation]:
    """Return the terms that some weights ask for; a weight of 0 asks for none.

    Args:
        weights: By the term's name.
        backbone: The model under training.
        concepts: What is removed, with what each preserves.
        reference: Puts the weights of the model that is to be kept in force for the length of a `with`; by default
            those that the training starts from.

    Raises:
        InputError: A term has nothing to preserve.
    """
    builders = {"attention": attention_retention}
    return [
        Preservation(loss=builders[name](backbone, concepts, reference), weight=weight)
        for name, weight in weights.items()
        if weight
    ]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Latents on the way to pictures of what is preserved."""

    latents: Float[Tensor, "n c h w"]
    timesteps: Int[Tensor, " n"]
    states: TextStates
    named: list[Named]


def attention_retention(backbone: Backbone, concepts: Sequence[Concept], reference: Reference) -> Loss:
    """Return A-STAR's retention across models (reconstructed from arXiv:2306.14544, eq. 3, which is across time).

        L_keep = sum_n  1 - sum min(A_theta^n, B_0^n) / sum (A_theta^n + B_0^n)

    A_theta^n is the map of a preserved name n under the weights being trained, B_0^n the region that the reference
    model's map holds, at the same latents, timestep and prompt. Prompts name n alone or beside what is removed. Maps
    depend on queries, keys and all that lies below them; the values of the last layers get no gradient.

    Raises:
        InputError: No concept preserves anything.
    """
    asks = _asks(concepts)
    if not asks:
        raise InputError(
            "preservation.attention: expected concepts that preserve something, got none. Name it in preserve."
        )
    reading = AStarLoss()
    denoiser = unwrapped(backbone.denoiser)
    capture = reading.capture(denoiser)
    kept: list[tuple[_Kept, Float[Tensor, "n rows columns"]]] = []

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        if not kept:
            with reference(), torch.no_grad():
                made = _made(backbone, asks, generator)
                kept.append((made, _masks(backbone, reading, capture, made)))
        pool, masks = kept[0]
        rows = [below(len(pool.named), generator) for _ in range(_BATCH)]
        found = student(_maps, backbone, reading, capture, pool, rows)
        return retention(found[:, None], masks[rows][:, None]).mean()

    return loss


def _asks(concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    """Return prompts, each with the preserved name in it: by itself and beside the concept."""
    erased = {name for concept in concepts for name in concept.names}
    return [
        (fill(template, words), kept)
        for concept in concepts
        for kept in concept.preserve
        if kept not in erased
        for template in templates(concept.kind)
        for words in (kept, f"{concept.target} and {kept}")
    ]


def _made(backbone: Backbone, asks: Sequence[tuple[str, str]], generator: torch.Generator) -> _Kept:
    """Sample trajectories of the model that is in force, and keep some places of each."""
    chosen = [asks[below(len(asks), generator)] for _ in range(_TRAJECTORIES)]
    states = backbone.encode([prompt for prompt, _ in chosen])
    named = [_named(states, row, name) for row, (_, name) in enumerate(chosen)]
    places = torch.randperm(_SAMPLE_STEPS, generator=generator)[:_PLACES].tolist()
    found = ddim_latents(
        backbone,
        noise([generator] * _TRAJECTORIES, backbone.latent_shape()),
        states,
        backbone.unconditional(),
        steps=_SAMPLE_STEPS,
        guidance_scale=_GUIDANCE_SCALE,
        stops=places,
    )
    timesteps = ddim_timesteps(len(backbone.alphas_cumprod), _SAMPLE_STEPS)
    return _Kept(
        latents=torch.cat([found[place] for place in places]),
        timesteps=torch.cat([timesteps[place].repeat(_TRAJECTORIES) for place in places]).to(backbone.device),
        states=states.select(list(range(_TRAJECTORIES)) * _PLACES),
        named=named * _PLACES,
    )


def _masks(
    backbone: Backbone, reading: MapReading, capture: MapCapture, pool: _Kept
) -> Float[Tensor, "n rows columns"]:
    """Return the region that the attention of the model in force holds, for each row's preserved name."""
    rows = range(len(pool.named))
    parts = [rows[at : at + _TRAJECTORIES] for at in range(0, len(rows), _TRAJECTORIES)]
    maps = torch.cat([_maps(backbone, reading, capture, pool, part) for part in parts])
    return regions(maps).to(maps.dtype)


def _maps(
    backbone: Backbone, reading: MapReading, capture: MapCapture, pool: _Kept, rows: Sequence[int]
) -> Float[Tensor, "n rows columns"]:
    """Return the map of each row's preserved name, with gradient."""
    latents = pool.latents[list(rows)]
    maps = capture.read_from(
        lambda: backbone.predict(latents, pool.timesteps[list(rows)], pool.states.select(list(rows)))
    )
    attention = reading.attention(capture, maps, latents, unwrapped(backbone.denoiser))
    return torch.stack(
        [reading.concept_maps(one, pool.named[row])[0] for one, row in zip(attention, rows, strict=True)]
    )


def _named(states: TextStates, row: int, name: str) -> Named:
    return Named(names=(name,), positions=[states.word_positions(row, name)], end=int(states.eot[row]))
