"""The noise levels of a denoiser, and how its outputs relate to the clean image and the noise.

Objectives and trajectories are written in terms of a schedule, once for models that predict noise, v or a velocity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError

PredictionType = Literal["epsilon", "v_prediction"]
Timestep = Int[Tensor, "..."] | Float[Tensor, "..."]
"""Noise levels as the pipeline's scheduler counts them, one for all latents or one each: integers of a discrete
schedule, floats (1000 sigma) of flow matching."""
SomeLatents = Float[Tensor, "n c h w"]


@runtime_checkable
class NoiseSchedule(Protocol):
    """The noise levels of a denoiser; tensors are on the model's device.

    `output` is a raw output of `Backbone.predict`. `prediction` is the same in the form that losses, guidance and
    steps are computed in: the noise of a discrete schedule, the velocity of flow matching.
    """

    words: ClassVar[str]
    """Name of the kind of schedule."""

    @property
    def total(self) -> int:
        """The number of timesteps of training."""
        ...

    def timesteps(self, steps: int) -> Float[Tensor, " steps"] | Int[Tensor, " steps"]:
        """Return the timesteps of a deterministic sampler, noisiest first, on the CPU.

        Raises:
            InputError: `steps` is out of range.
        """
        ...

    def drawn(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"] | Int[Tensor, " n"]:
        """Return random timesteps of training, on the CPU."""
        ...

    def factors(self, timestep: Timestep) -> tuple[Float[Tensor, "#n 1 1 1"], Float[Tensor, "#n 1 1 1"]]:
        """Return the factors of the clean latents and of the noise in `noised`, float32."""
        ...

    def noised(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        """Return clean latents with noise of the level."""
        ...

    def target(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        """Return the output that training asks for at `noised(clean, noise, timestep)`."""
        ...

    def prediction(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        """Return an output in the form that losses, guidance and steps are computed in."""
        ...

    def noise_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        """Return the noise that an output stands for."""
        ...

    def clean_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        """Return the clean latents that an output stands for."""
        ...

    def step(
        self, prediction: SomeLatents, latents: SomeLatents, timestep: Timestep, following: Timestep
    ) -> SomeLatents:
        """Return the latents at the following timestep of a deterministic sampler.

        Args:
            prediction: The `prediction`, after guidance.
            latents: Latents at `timestep`.
            timestep: The current timestep.
            following: The next timestep, less noisy.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Discrete:
    """A schedule of integer timesteps: x = sqrt(alpha) x0 + sqrt(1 - alpha) eps.

    Attributes:
        alphas_cumprod: The signal's share alpha of the variance at each timestep, in [0, 1]; float32.
        prediction_type: The denoiser's output: the noise, or v = sqrt(alpha) eps - sqrt(1 - alpha) x0
            (arXiv:2202.00512).
    """

    words: ClassVar[str] = "discrete timesteps"

    alphas_cumprod: Float[Tensor, " t"]
    prediction_type: PredictionType

    @property
    def total(self) -> int:
        return len(self.alphas_cumprod)

    def timesteps(self, steps: int) -> Int[Tensor, " steps"]:
        # Spaced as Stable Diffusion is: leading, offset 1.
        if not 1 <= steps < self.total:
            raise InputError(
                f"steps: expected 1 to {self.total - 1}, got {steps!r}. Give fewer than the training timesteps."
            )
        return torch.arange(steps - 1, -1, -1) * (self.total // steps) + 1

    def drawn(self, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        return torch.randint(self.total, (n,), generator=generator)

    def factors(self, timestep: Timestep) -> tuple[Float[Tensor, "#n 1 1 1"], Float[Tensor, "#n 1 1 1"]]:
        alpha = self._alpha(timestep)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def noised(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        alpha = self._alpha(timestep)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def target(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        if self.prediction_type == "epsilon":
            return noise
        alpha = self._alpha(timestep)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    def prediction(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        return self.noise_of(output, latents, timestep)

    def noise_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        if self.prediction_type == "epsilon":
            return output
        alpha = self._alpha(timestep)
        return (alpha.sqrt() * output + (1 - alpha).sqrt() * latents.to(output)).to(output.dtype)

    def clean_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        return self._clean(self.noise_of(output, latents, timestep), latents, self._alpha(timestep))

    def step(
        self, prediction: SomeLatents, latents: SomeLatents, timestep: Timestep, following: Timestep
    ) -> SomeLatents:
        """Return the latents of DDIM's deterministic step (Song et al., arXiv:2010.02502, eq. 12)."""
        alpha, next_alpha = self._alpha(timestep), self._alpha(following)
        clean = self._clean(prediction, latents, alpha)
        return next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * prediction

    def _alpha(self, timestep: Timestep) -> Float[Tensor, "#n 1 1 1"]:
        return self.alphas_cumprod[timestep.to(self.alphas_cumprod.device)].reshape(-1, 1, 1, 1)

    @staticmethod
    def _clean(noise: SomeLatents, latents: SomeLatents, alpha: Float[Tensor, "#n 1 1 1"]) -> SomeLatents:
        return (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()


@dataclass(frozen=True, kw_only=True, eq=False)
class Flow:
    """Flow matching on straight paths: x = (1 - sigma) x0 + sigma eps; the denoiser predicts v = eps - x0.

    A timestep is 1000 sigma, as diffusers' flow-matching schedulers have it.

    Attributes:
        sigmas: Returns the noise levels of a sampler of so many steps, noisiest first, in (0, 1], shifted as the
            pipeline shifts them.
        total: Timesteps of training, which scale sigma.
    """

    words: ClassVar[str] = "flow matching"

    sigmas: Callable[[int], Float[Tensor, " steps"]]
    total: int = 1000

    def timesteps(self, steps: int) -> Float[Tensor, " steps"]:
        if steps < 1:
            raise InputError(f"steps: expected at least 1, got {steps!r}. Give a positive number.")
        return self.sigmas(steps) * self.total

    def drawn(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        # A uniform index of the sampler's levels has the density of its shift.
        return self.timesteps(self.total)[torch.randint(self.total, (n,), generator=generator)]

    def factors(self, timestep: Timestep) -> tuple[Float[Tensor, "#n 1 1 1"], Float[Tensor, "#n 1 1 1"]]:
        sigma = (timestep.to(torch.float32) / self.total).reshape(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def noised(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        sigma = self._sigma(timestep, clean)
        return (1 - sigma) * clean + sigma * noise

    def target(self, clean: SomeLatents, noise: SomeLatents, timestep: Timestep) -> SomeLatents:
        return noise - clean

    def prediction(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        return output

    def noise_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        return latents.to(output) + (1 - self._sigma(timestep, output)) * output

    def clean_of(self, output: SomeLatents, latents: SomeLatents, timestep: Timestep) -> SomeLatents:
        return latents.to(output) - self._sigma(timestep, output) * output

    def step(
        self, prediction: SomeLatents, latents: SomeLatents, timestep: Timestep, following: Timestep
    ) -> SomeLatents:
        """Return the latents of Euler's step along the velocity."""
        return latents + (self._sigma(following, latents) - self._sigma(timestep, latents)) * prediction

    def _sigma(self, timestep: Timestep, like: Tensor) -> Float[Tensor, "#n 1 1 1"]:
        return (timestep.to(like.device, torch.float32) / self.total).reshape(-1, 1, 1, 1).to(like.dtype)
