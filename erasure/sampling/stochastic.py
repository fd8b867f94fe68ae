"""The Markov chain of a stochastic sampler: its steps, its paths, and their densities."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.schedule import NoiseSchedule, Timestep
from ..errors import InputError
from .latents import Latents

Factor = Float[Tensor, "#n 1 1 1"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition:
    """The kernels between a timestep t and the following one, s, of a sampler with eta = 1.

    With x_t = a_t x0 + b_t e (`NoiseSchedule.factors`), r = a_t / a_s and v = b_t^2 - r^2 b_s^2,

        noising    q(x_t | x_s) = N(r x_s, v)
        denoising  p(x_s | x_t) = N(a_s x0 + sqrt(b_s^2 - d^2) e, d^2),   d^2 = b_s^2 v / b_t^2

    where x0 and e are those of the denoiser's output: DDIM's stochastic step (arXiv:2010.02502, eq. 16, eta = 1) for a
    discrete schedule, and the same posterior on the straight paths of flow matching.

    Attributes:
        schedule: Noise levels.
        timestep: t, one for all latents or one each.
        following: s, less noisy.

    Raises:
        InputError: The following timestep has no noise, so that the step has no density.
    """

    schedule: NoiseSchedule
    timestep: Timestep
    following: Timestep

    def __post_init__(self) -> None:
        if not bool((self.spread > 0).all()):
            raise InputError(
                f"timesteps: expected steps that add noise, got one to {self.following.min().item()!r}."
                " Leave the last step out."
            )

    @property
    def spread(self) -> Factor:
        """Standard deviation d of the denoising step."""
        _, b = self.schedule.factors(self.timestep)
        _, b_next = self.schedule.factors(self.following)
        return b_next * self._variance.sqrt() / b

    @property
    def _ratio(self) -> Factor:
        return self.schedule.factors(self.timestep)[0] / self.schedule.factors(self.following)[0]

    @property
    def _variance(self) -> Factor:
        _, b = self.schedule.factors(self.timestep)
        _, b_next = self.schedule.factors(self.following)
        return (b.square() - (self._ratio * b_next).square()).clamp(min=0)

    def mean(self, output: Latents, latents: Latents) -> Latents:
        """Return the mean of the denoising step.

        Args:
            output: Raw output of `Backbone.predict`, or a guided combination of such.
            latents: x_t.
        """
        clean = self.schedule.clean_of(output, latents, self.timestep)
        noise = self.schedule.noise_of(output, latents, self.timestep)
        a_next, b_next = self.schedule.factors(self.following)
        return a_next * clean + (b_next.square() - self.spread.square()).clamp(min=0).sqrt() * noise

    def denoising(self, output: Latents, latents: Latents, reached: Latents) -> Float[Tensor, " n"]:
        """Return log p(reached | latents), mean over the entries."""
        return log_density(reached, self.mean(output, latents), self.spread)

    def noising(self, latents: Latents, reached: Latents) -> Float[Tensor, " n"]:
        """Return log q(latents | reached), mean over the entries."""
        return log_density(latents, self._ratio * reached, self._variance.sqrt())


def log_density(x: Latents, mean: Latents, spread: Factor) -> Float[Tensor, " n"]:
    """Return the log density of normal entries, mean over the entries of each image."""
    logs = -((x - mean) / spread).square() / 2 - spread.log() - math.log(2 * math.pi) / 2
    return logs.flatten(1).mean(1)


@torch.no_grad()
def stochastic_path(
    schedule: NoiseSchedule,
    predict: Callable[[Latents, Timestep], Latents],
    start: Latents,
    timesteps: Timestep,
    generator: torch.Generator,
) -> list[Latents]:
    """Return the latents of a stochastic trajectory at each timestep.

    Args:
        schedule: Noise levels.
        predict: Returns the raw output of the denoiser, guided as wished, at latents of a timestep.
        start: Standard normal noise.
        timesteps: Timesteps of the sampler, noisiest first.
        generator: Source of the steps' noise.
    """
    path = [start]
    for timestep, following in pairwise(timesteps):
        step = Transition(schedule=schedule, timestep=timestep, following=following)
        fresh = torch.randn(start.shape, generator=generator).to(start.device)
        path.append(step.mean(predict(path[-1], timestep), path[-1]) + step.spread * fresh)
    return path
