"""Inversion to a start noise, without a prompt (TINA, arXiv:2603.17828; null-text inversion, arXiv:2211.09794)."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, cast

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.errors import InputError
from erasure.registry import Exactness
from erasure.sampling import Latents, noise, sample_part, scheduled_prediction

from .base import Access, Aim, Models, Outcome, Probe, Subject
from .examples import example_latents

Degrees = Annotated[float, Field(gt=0, le=90)]


@dataclass(frozen=True, kw_only=True)
class NullText(Probe):
    """Images of the concept are run backwards to their start noise in the tested model, and sampled with no prompt.

    An exact inversion returns any image in any model, so the noise z of the image is turned away from itself first, by
    an angle towards fresh noise e,

        z' = sin(d) z + cos(d) e

    A model that holds the concept draws other members of it, one that only decodes draws blends. What counts is the
    excess over a model that was never taught the concept, or over the same with drawn images that no model knows. Each
    step of DDIM is inverted by fixed-point iteration,

        z_t = (z_s - B eps(z_t, t)) / A   where a step is  z_s = A z_t + B eps(z_t, t)

    Differs from the paper: fixed points in the place of 25 updates of AdamW a step; no guidance; and the angle, without
    which a success says nothing.

    Attributes:
        doses: Degrees d of the image's noise, from fresh noise (0) to the whole inversion (90), each in (0, 90].
        rounds: Iterations a step, > 0.
    """

    name: ClassVar[str] = "null-text"
    source: ClassVar[str] = "arXiv:2603.17828"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "image"
    dose_unit: ClassVar[str] = "degrees of the image's noise"
    novel: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (60.0, 90.0), "rounds": 1})

    doses: Annotated[tuple[Degrees, ...], Field(min_length=1)] = (45.0, 60.0, 70.0, 80.0)
    rounds: Annotated[int, Field(ge=1)] = 4

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"clean": example_latents(models, aim, aim.concept.target, len(aim.prompts), seed=aim.seed)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        subject.report(0, len(self.doses) + 1, "inversion")
        inverted = start_noise(subject.pipe, subject.material["clean"], aim.sampling.steps, self.rounds)
        fresh = noise([torch.Generator().manual_seed(seed) for seed in aim.seeds], tuple(inverted.shape[1:]))  # type: ignore[arg-type]
        empty = backbone.unconditional().expand(len(aim.prompts))
        unguided = replace(aim.sampling, guidance_scale=1.0)
        for i, dose in enumerate(self.doses, 1):
            subject.report(i, len(self.doses) + 1, f"{dose:g} degrees")
            turned = math.sin(math.radians(dose)) * inverted + math.cos(math.radians(dose)) * fresh
            images = sample_part(subject.pipe, empty, turned, aim.seeds, unguided)
            yield Outcome(dose=dose, images=cast("list[Image]", images), label=f"{dose:g} degrees")


@torch.no_grad()
def start_noise(pipe: DiffusionPipeline, clean: Latents, steps: int, rounds: int) -> Latents:
    """Return the start noise from which a deterministic DDIM without a prompt samples some clean latents.

    Args:
        pipe: Pipeline with a DDIM scheduler.
        clean: Clean latents, scaled as in training.
        steps: Number of sampling steps.
        rounds: Iterations a step, > 0; the first takes the prediction at the less noisy latents.

    Raises:
        InputError: The scheduler is another one.
    """
    kind = type(pipe.scheduler).__name__
    if not kind.startswith("DDIM"):
        raise InputError(f"null-text: expected a DDIM scheduler, got {kind}. Others cannot be run backwards like it.")
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.cpu()
    # The last step ends at the least noise of the training, which the clean latents count as.
    following = torch.cat([timesteps[1:], timesteps.new_zeros(1)])
    backbone = backbone_of(pipe)
    latents = clean.to(backbone.device, torch.float32)
    for timestep, next_timestep in zip(timesteps.flip(0), following.flip(0), strict=True):
        latents = _undone(backbone, latents, timestep, next_timestep, rounds)
    return latents.cpu()


def _undone(backbone: Backbone, latents: Latents, timestep: Tensor, following: Tensor, rounds: int) -> Latents:
    """Return the latents that one deterministic step takes to `latents`; a step is linear in latents and prediction."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    kept = float(backbone.schedule.step(zero, one, timestep, following))
    added = float(backbone.schedule.step(one, zero, timestep, following))
    empty = backbone.unconditional().expand(len(latents))
    noisier = latents
    for _ in range(rounds):
        noisier = (latents - added * scheduled_prediction(backbone, noisier, timestep, empty)) / kept
    return noisier
