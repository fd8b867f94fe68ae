"""A call of the denoiser by a pipeline's loop, as the hooks of a guidance see it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .batches import Latents, Value, rows_of


@runtime_checkable
class Link(Protocol):
    """State of the hooks of a pipeline that a call of its denoiser looks at."""

    resting: bool

    def at_rest(self) -> AbstractContextManager[None]:
        """Call no hook for the length of a `with`."""
        ...


@dataclass(kw_only=True)
class Denoising:
    """One call of the denoiser by a pipeline's loop.

    Attributes:
        step: Index of the step in the schedule, from 0.
        total: Number of steps of the schedule.
        first: Whether this is the first step of the loop, which may begin in the middle of the schedule.
        timestep: As the loop gave it to the denoiser.
        latents: Before the scheduler's scaling and the pipeline's packing, one for each image; as earlier hooks of the
            same step left them.
        guided: Whether the denoiser is asked for unconditional predictions as well (classifier-free guidance).
    """

    step: int
    total: int
    first: bool
    timestep: Tensor
    latents: Latents
    guided: bool
    _denoiser: nn.Module
    _scale: Callable[[Tensor, Tensor], Tensor]
    _sample: Tensor
    _args: tuple[Any, ...]
    _kwargs: Mapping[str, Any]
    _link: Link

    def conditional(self, value: Value) -> Value:
        """Return the part of a batch of the denoiser's that belongs to the prompts; tensors inside are found."""
        return rows_of(value, len(self._sample), self._part)

    @property
    def arguments(self) -> dict[str, Any]:
        """The denoiser's arguments for the prompts, by name."""
        return self.conditional(self.batch_arguments)

    @property
    def resting(self) -> bool:
        """True while a further prediction is made, beside the loop's own."""
        return self._link.resting

    @property
    def batch_arguments(self) -> dict[str, Any]:
        """The denoiser's arguments for the whole batch, by name."""
        return dict(self._kwargs)

    def replace_arguments(self, **replaced: object) -> None:
        """Replace arguments of the denoiser for the whole batch; to be called before it."""
        self._kwargs = {**self._kwargs, **replaced}

    @property
    def _part(self) -> slice:
        """The rows of the prompts: the second block of the batch under classifier-free guidance, else the first."""
        n = len(self.latents)
        return slice(n, 2 * n) if self.guided else slice(0, n)

    def scaled(self, latents: Latents) -> Tensor:
        """Return latents as the denoiser takes them: scaled, or packed."""
        return self._scale(latents, self.timestep)

    def predict(self, latents: Latents, **replaced: object) -> Tensor:
        """Return the denoiser's output for the prompts at other latents, with gradient; no hook is called.

        Args:
            latents: Before scaling, one for each image.
            replaced: The denoiser's arguments that take the place of the loop's.
        """
        sample = self.with_latents(self.conditional(self._sample), latents)
        kwargs = {**self.arguments, "return_dict": False, **replaced}
        with self._link.at_rest():
            return self._denoiser(sample, *self.conditional(self._args), **kwargs)[0]

    def predict_all(self, latents: Latents) -> Tensor:
        """Return the denoiser's output for the whole batch of the loop, at other latents; no hook is called."""
        repeats = len(self._sample) // len(latents)
        sample = self.with_latents(self._sample, torch.cat([latents] * repeats))
        with self._link.at_rest():
            return self._denoiser(sample, *self._args, **{**self._kwargs, "return_dict": False})[0]

    def with_latents(self, sample: Tensor, latents: Latents) -> Tensor:
        """Return a sample with these latents, scaled; an inpainting denoiser's further channels stay."""
        scaled = self.scaled(latents).to(sample.dtype)
        if scaled.ndim < latents.ndim:  # packed
            return scaled
        return torch.cat([scaled, sample[:, latents.shape[1] :]], dim=1)
