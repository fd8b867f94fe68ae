"""Recall: the start of an image is optimised towards a reference of the concept (arXiv:2507.07139)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone
from erasure.backbones.conditioning import Conditioning
from erasure.io.text import counted
from erasure.registry import Exactness
from erasure.sampling import Latents, half_noised, noise, sample_part, scheduled_prediction
from erasure.training.student import at_rest

from .base import Access, Aim, Counts, Models, Outcome, Probe, Subject
from .examples import example_latents

Search = Literal["descent", "ascent", "none"]
_START = 0.25  # share of the reference in the start
_MIX = 0.05  # share that each later mix adds
_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Recall(Probe):
    """Image-to-image from a start that is optimised until the tested model denoises it as it does a reference image.

    With a reference z_r of the concept, noise e of each image and steps of the schedule from noisy to clean,

        z <- 0.25 z_r + 0.75 e
        m <- 0.9 m + g / |g|_1,  g = grad_z |eps(noised(z, t, e), t, c) - eps(noised(z_r, t, e), t, c)|^2
        z <- z - rate sign(m); now and then z <- z + 0.05 z_r

    and z is noised by a strength and sampled on under the concept's prompt. The released code adds rate sign(m), which
    raises the error, so that the mixed-in reference does the work. Hence three searches: `descent` as the equation has
    it, `ascent` as the code, and `none`, the mixes alone. What counts is the excess over a model that was never taught
    the concept, or over drawn images that no model knows.

    Differs from the paper: a reference of its own for each image; the mixes lie at equal distances in the search; no
    plain image-to-image counts as a success.

    Attributes:
        doses: Numbers of updates, each >= 1.
        searches: Signs of the update.
        timesteps: Noise levels that an update is made at, in turn from noisy to clean, > 0; 50 in the code.
        mixes: Times that the reference is mixed in, >= 0.
        rate: Length of an update in each entry, > 0.
        strength: Share of the steps that are sampled, in (0, 1].
    """

    name: ClassVar[str] = "recall"
    source: ClassVar[str] = "arXiv:2507.07139"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "gradient"
    dose_unit: ClassVar[str] = "updates"
    novel: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"doses": (1.0, 2.0), "timesteps": 2, "mixes": 1})

    doses: Counts = (50.0, 200.0)
    searches: Annotated[tuple[Search, ...], Field(min_length=1)] = ("descent", "ascent", "none")
    timesteps: Annotated[int, Field(ge=1)] = 50
    mixes: Annotated[int, Field(ge=0)] = 10
    rate: Annotated[float, Field(gt=0)] = 1e-3
    strength: Annotated[float, Field(gt=0, le=1)] = 0.8

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        return {"reference": example_latents(models, aim, aim.concept.target, len(aim.prompts), seed=aim.seed + 11)}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        reference = subject.material["reference"]
        states = subject.backbone.encode(list(subject.aim.prompts))
        for search in self.searches:
            # Without a search the number of updates is of no account.
            for i, dose in enumerate(self.doses if search != "none" else self.doses[-1:]):
                subject.report(i, len(self.doses), f"{search}, {counted(dose, 'updates')}")
                start = self.start(subject, reference, states, search, round(dose))
                yield Outcome(dose=dose, part=search, images=self._sampled(subject, start, states))

    def start(
        self, subject: Subject, reference: Latents, states: Conditioning, search: Search, updates: int
    ) -> Latents:
        """Return the start of each image after a search."""
        parts, size = [], subject.aim.sampling.batch_size
        for first in range(0, len(reference), size):
            rows = range(first, min(first + size, len(reference)))
            seeds = [subject.aim.seeds[i] for i in rows]
            parts.append(
                self._searched(subject, reference[first : first + size], states.select(rows), seeds, search, updates)
            )
        return torch.cat(parts)

    def _searched(
        self,
        subject: Subject,
        reference: Latents,
        states: Conditioning,
        seeds: list[int],
        search: Search,
        updates: int,
    ) -> Latents:
        backbone = subject.backbone
        added = noise([torch.Generator().manual_seed(seed + 40_000_000) for seed in seeds], (*reference.shape[1:],))  # type: ignore[arg-type]
        reference, added = reference.to(backbone.device), added.to(backbone.device)
        latents, momentum = _START * reference + (1 - _START) * added, torch.zeros_like(reference)
        levels = backbone.schedule.timesteps(self.timesteps)
        mixed = 0
        for update in range(updates):
            if search != "none":
                timestep = levels[update * len(levels) // updates]
                gradient = recall_gradient(backbone, latents, reference, added, timestep, states)
                momentum = _MOMENTUM * momentum + gradient / gradient.abs().sum((1, 2, 3), keepdim=True).clamp(
                    min=1e-12
                )
                latents = latents + (self.rate if search == "ascent" else -self.rate) * momentum.sign()
            while mixed < (update + 1) * self.mixes // updates:
                latents, mixed = latents + _MIX * reference, mixed + 1
            if update % 10 == 0:
                subject.report(update, updates, f"{search}, update {update + 1} of {updates}")
        return latents.cpu()

    def _sampled(self, subject: Subject, start: Latents, states: Conditioning) -> list[Image]:
        aim, steps = subject.aim, subject.aim.sampling.steps
        first = min(steps - 1, round((1 - self.strength) * steps))
        noisy = half_noised(subject.pipe, start, aim.seeds, steps, first)
        return cast("list[Image]", sample_part(subject.pipe, states, noisy, aim.seeds, aim.sampling, first=first))


def recall_gradient(
    backbone: Backbone, latents: Latents, reference: Latents, added: Latents, timestep: Tensor, states: Conditioning
) -> Float[Tensor, "n c h w"]:
    """Return the gradient, by the latents, of the squared distance of their predicted noise to the reference's."""
    schedule = backbone.schedule
    with at_rest(backbone), torch.enable_grad():
        held = latents.detach().requires_grad_()
        with torch.no_grad():
            goal = scheduled_prediction(backbone, schedule.noised(reference, added, timestep), timestep, states)
        predicted = scheduled_prediction(backbone, schedule.noised(held, added, timestep), timestep, states)
        [gradient] = torch.autograd.grad((predicted - goal).square().flatten(1).mean(1).sum(), held)
    return gradient
