"""Noise, and latents on deterministic trajectories, for training."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..backbones.schedule import Timestep
from ..backbones.usable import check_channels

Latents = Float[Tensor, "n c h w"]


def noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Latents:
    """Return standard normal noise as float32 on the CPU, each row from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@torch.no_grad()
def trajectory_latents(
    backbone: Backbone,
    start: Latents,
    states: Conditioning,
    unconditional: Conditioning,
    *,
    steps: int,
    guidance_scale: float,
    stops: Sequence[int],
    timesteps: Shaped[Tensor, " run"] | None = None,
) -> dict[int, Latents]:
    """Return the latents of some steps of a deterministic trajectory, along `NoiseSchedule.step`.

    The run ends at the last of them. The schedule is the denoiser's own, whatever scheduler the pipeline has, so the
    latents are the input of `Backbone.predict`.

    Args:
        backbone: Loaded model.
        start: Standard normal noise.
        states: Text states, one row per latent.
        unconditional: Unconditional text states, one row, for classifier-free guidance.
        steps: Number of steps of the whole schedule.
        guidance_scale: Scale of classifier-free guidance; 1 samples from the conditional prediction alone.
        stops: Steps from 0 (the start) to steps - 1; step i is at timestep `schedule.timesteps(steps)[i]`.
        timesteps: Timesteps to run along instead of those of the schedule.

    Returns:
        Float32 latents on the model's device, by step.
    """
    schedule = backbone.schedule
    timesteps = (schedule.timesteps(steps) if timesteps is None else timesteps).to(backbone.device)
    latents = start.to(backbone.device, torch.float32)
    guided = guidance_scale != 1
    read = concatenate([unconditional.expand(len(states)), states]) if guided else states
    latents_by_step: dict[int, Latents] = {}
    for place in range(max(stops) + 1):
        if place in stops:
            latents_by_step[place] = latents
        if place == max(stops):
            break
        timestep = timesteps[place]
        doubled = torch.cat([latents, latents]) if guided else latents
        prediction = scheduled_prediction(backbone, doubled, timestep, read)
        if guided:
            unconditional_part, conditional = prediction.chunk(2)
            prediction = unconditional_part + guidance_scale * (conditional - unconditional_part)
        latents = schedule.step(prediction, latents, timestep, timesteps[place + 1])
    return latents_by_step


def scheduled_prediction(backbone: Backbone, latents: Latents, timestep: Timestep, states: Conditioning) -> Latents:
    """Return the schedule's `prediction` (the noise, or a velocity) in float32, whatever the model computes in.

    Raises:
        InputError: The denoiser reads more than latents.
    """
    check_channels(backbone.denoiser)
    output = backbone.predict(latents, timestep, states)
    return backbone.schedule.prediction(output.float(), latents.float(), timestep)
