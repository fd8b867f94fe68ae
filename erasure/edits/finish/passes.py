"""Latents on a model's trajectories for names, as finishes measure layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from ...concept import Kind
from ...prompts import fill, templates
from ...sampling import noise, trajectory_latents

_GUIDANCE_SCALE, _PLACES = 4.0, 4
_SEED = 70_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedLatents:
    """Latents of one step of some trajectories.

    Attributes:
        latents: Latents, a row a trajectory.
        timestep: Timestep of all.
        prompts: Encoded prompt of each.
    """

    latents: Float[Tensor, "n c h w"]
    timestep: Timestep
    prompts: Conditioning


def named_trajectories(backbone: Backbone, names: Sequence[tuple[str, Kind]], steps: int) -> Iterator[NamedLatents]:
    """Yield the latents of four steps of a guided trajectory for each name, in the templates of its kind in turn."""
    seen: dict[str, int] = {}
    texts: list[str] = []
    for name, kind in names:
        seen[name] = seen.get(name, -1) + 1
        sentences = templates(kind)
        texts.append(fill(sentences[seen[name] % len(sentences)], name))
    prompts = backbone.encode(texts)
    stops = list(range(0, steps, max(1, steps // _PLACES)))
    latents = trajectory_latents(
        backbone,
        noise([torch.Generator().manual_seed(_SEED + i) for i in range(len(texts))], backbone.latent_shape()),
        prompts,
        backbone.unconditional(),
        steps=steps,
        guidance_scale=_GUIDANCE_SCALE,
        stops=stops,
    )
    timesteps = backbone.schedule.timesteps(steps).to(backbone.device)
    for stop in stops:
        yield NamedLatents(latents=latents[stop], timestep=timesteps[stop], prompts=prompts)
