"""A step of a pipeline's loop, as the hooks of a guidance see what it asks its denoiser."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning
from ..errors import InputError
from .batches import Latents, Output, Replacement, Sample, Value, first_of, rows_of, stacked, with_first


@runtime_checkable
class Link(Protocol):
    """State of the hooks of a pipeline that a call of its denoiser looks at."""

    resting: bool

    def at_rest(self) -> AbstractContextManager[None]:
        """Call no hook for the length of a `with`."""
        ...


@dataclass(kw_only=True)
class Denoising:
    """The predictions that a pipeline's loop asks for in one step, by one call of the denoiser or by two.

    Attributes:
        step: Index of the step in the schedule, from 0.
        total: Number of steps of the schedule.
        first: Whether this is the first step of the loop, which may begin in the middle of the schedule.
        timestep: Timestep of the schedule.
        images: Number of images.
        guided: Whether the denoiser is asked for unconditional predictions as well (classifier-free guidance); of two
            calls, whether the second was made.
    """

    step: int
    total: int
    first: bool
    timestep: Tensor
    images: int
    guided: bool
    _denoiser: nn.Module
    _backbone: Backbone
    _unpacked: Callable[[], Latents]
    _scale: Callable[[Tensor, Tensor], Tensor]
    _sample: Sample
    _arguments: Mapping[str, Any]
    _link: Link
    _moved: Latents | None = None
    _replaced: tuple[Conditioning, Bool[Tensor, " n"]] | None = None
    _prompted: Callable[[], Tensor | None] = field(default=lambda: None)

    @property
    def latents(self) -> Latents:
        """Latents before the scheduler's scaling and the pipeline's packing, as earlier hooks of the step left them."""
        if self._moved is None:
            self._moved = self._unpacked()
        return self._moved

    def move(self, latents: Latents) -> Sample:
        """Take other latents for the whole batch, and return them as the denoiser does."""
        sample = cast("Tensor", self._sample)
        self._moved = latents
        self._sample = self.with_latents(sample, torch.cat([latents] * (len(sample) // self.images)))
        return self._sample

    def conditional(self, value: Value) -> Value:
        """Return the part of a batch of the denoiser's that belongs to the prompts; tensors inside are found."""
        return rows_of(value, len(self._sample), self._part, self._backbone.loop.axes)

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
        return dict(self._arguments)

    def replace_arguments(self, **replaced: object) -> None:
        """Replace arguments of the denoiser for the whole batch; to be called before it."""
        self._arguments = {**self._arguments, **replaced}

    def replace_unconditional(self, text: Conditioning, rows: Bool[Tensor, " n"]) -> None:
        """Have one text in the place of the unconditional one, for some images; to be called before the denoiser."""
        self._replaced = (text, rows)
        if not self.in_two_calls:
            self._arguments = self.unconditional_arguments(self._arguments)

    def unconditional_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the unconditional predictions with the text that replaces theirs."""
        if self._replaced is None:
            return dict(arguments)
        text, rows = self._replaced
        start = 0 if self.in_two_calls or self._backbone.loop.unconditional == "first" else self.images
        replace = Replacement(start=start, rows=rows, loop=self._backbone.loop, whole=self.in_two_calls)
        return replace(arguments, self._backbone.text_arguments(text.expand(self.images), arguments))

    @property
    def in_two_calls(self) -> bool:
        """Whether the unconditional predictions are asked for by a call of their own."""
        return self._backbone.loop.unconditional == "two calls"

    @property
    def _part(self) -> slice:
        """The rows of the prompts in the batch of their call."""
        both = len(self._sample) > self.images and self._backbone.loop.unconditional == "first"
        return slice(self.images, 2 * self.images) if both else slice(0, self.images)

    def halves(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unconditional predictions and the prompts', of an output under classifier-free guidance."""
        return output[: self.images], output[self.images : 2 * self.images]

    def scaled(self, latents: Latents) -> Tensor:
        """Return latents as the denoiser takes them: scaled, or packed."""
        return self._scale(latents, self.timestep)

    def predict(self, latents: Latents | None = None, text: Conditioning | None = None) -> Tensor:
        """Return the denoiser's output for the prompts, with gradient; no hook is called.

        Args:
            latents: Before scaling, one for each image; None takes the step's.
            text: Text of each image in the place of the prompts.
        """
        sample, arguments = self._sample[self._part], self.arguments
        if latents is not None:
            sample = self.with_latents(cast("Tensor", sample), latents)
        if text is not None:
            every = torch.ones(self.images, dtype=torch.bool)
            replace = Replacement(start=0, rows=every, loop=self._backbone.loop, whole=True)
            arguments = replace(arguments, self._backbone.text_arguments(text, arguments))
        with self._link.at_rest():
            return stacked(self._denoiser(sample, **{**arguments, "return_dict": False})[0])

    def predict_all(self, latents: Latents) -> Tensor:
        """Return the denoiser's output for the whole batch of the loop's call, at other latents; no hook is called."""
        sample = cast("Tensor", self._sample)
        sample = self.with_latents(sample, torch.cat([latents] * (len(sample) // self.images)))
        with self._link.at_rest():
            return self._denoiser(sample, **{**self._arguments, "return_dict": False})[0]

    def with_latents(self, sample: Tensor, latents: Latents) -> Tensor:
        """Return a sample with these latents, scaled; an inpainting denoiser's further channels stay."""
        scaled = self.scaled(latents).to(sample.dtype)
        if scaled.ndim < latents.ndim:  # packed
            return scaled
        return torch.cat([scaled, sample[:, latents.shape[1] :]], dim=1)

    def keep(self, output: Output) -> None:
        """Keep the prompts' predictions, of the first of two calls, for as long as the loop does."""
        self._prompted = weakref.ref(first_of(output))

    def changed(self, output: Output, change: Callable[[Tensor], Tensor]) -> Output:
        """Return the denoiser's output after a function of both predictions, the unconditional ones first.

        Of two calls the output is the second's; the prompts' predictions are changed where the loop keeps them.

        Raises:
            InputError: The loop does not keep what the first call gave it.
        """
        plain = first_of(output)
        whole, last = stacked(plain), self.guided and self._backbone.loop.unconditional == "last"
        prompted = self._prompted() if self.in_two_calls and self.guided else None
        if self.in_two_calls and self.guided:
            if prompted is None:
                raise InputError(
                    "guidance: expected a loop that keeps the denoiser's output for the prompts until it has the"
                    " unconditional one, got one that copies it. Use diffusers' own pipeline."
                )
            whole = torch.cat([whole, prompted])
        if last:
            whole = torch.cat([whole[self.images :], whole[: self.images]])
        result = change(whole)
        if result is whole:
            return output
        if prompted is not None:
            free, new = self.halves(result)
            prompted.copy_(new)
            result = free
        if last:
            result = torch.cat([result[self.images :], result[: self.images]])
        return with_first(output, lambda _: result if isinstance(plain, Tensor) else list(result.unbind()))
