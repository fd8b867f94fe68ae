"""Parts of the denoiser's arguments and results, whatever their types, and the result of a step."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.loaded import unwrapped
from ..backbones.sampling_loop import SamplingLoop
from ..errors import InputError

Value = TypeVar("Value")
Latents = Float[Tensor, "n c h w"]
Output = BaseOutput | tuple[Any, ...]
"""A result of diffusers: a tuple, or an output with fields."""

Sample = Tensor | list[Tensor]
"""The latents of a loop as its denoiser takes them."""
Axes = Mapping[str, int | None]
"""Axis of the images in some arguments; see `SamplingLoop.axes`."""

Generators = torch.Generator | Sequence[torch.Generator | None] | None
"""The generator of a loop, or one for each image."""


_BY_ROWS: Axes = MappingProxyType({})


def rows_of(value: Value, batch: int, part: slice, axes: Axes = _BY_ROWS) -> Value:
    """Return a value of the denoiser's arguments with each tensor of `batch` rows cut to some of them."""
    return cast(Value, _rows_of(value, batch, part, axes))


def _rows_of(value: object, batch: int, part: slice, axes: Axes, axis: int | None = 0) -> object:
    if isinstance(value, Tensor):
        place = axis or 0
        whole = value.ndim > place and value.shape[place] == batch
        return value[(*[slice(None)] * place, part)] if whole else value
    if isinstance(value, Mapping):
        return {key: _rows_of(inner, batch, part, axes, axes.get(key, 0)) for key, inner in value.items()}
    if axis is None and isinstance(value, list):
        return value[part]
    if isinstance(value, list | tuple):
        return type(value)(_rows_of(inner, batch, part, axes) for inner in value)
    return value


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Rows of a denoiser's arguments that others take the place of.

    Attributes:
        start: First row of those of the images in the batch.
        rows: Whether each image's row is replaced.
        loop: Form of the denoiser's calls.
        whole: Whether the batch consists of these rows.
    """

    start: int
    rows: Bool[Tensor, " n"]
    loop: SamplingLoop
    whole: bool

    def __call__(self, arguments: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with the rows of others, which have one for each image, in the place of theirs."""
        mask = self.loop.mask
        if mask in others and arguments.get(mask) is None:  # hides nothing
            read = next(value for name, value in arguments.items() if name in others and name != mask)
            arguments = {**arguments, mask: torch.ones_like(read[..., 0], dtype=others[mask].dtype)}
        return {**arguments, **{name: self._put(name, arguments.get(name), other) for name, other in others.items()}}

    def _put(self, name: str, value: Any, other: Any) -> object:
        if isinstance(other, Mapping):
            return self(value, cast("Mapping[str, Any]", other))
        axis, chosen = self.loop.axes.get(name, 0), self.rows.nonzero().flatten()
        if axis is None:
            listed = list(value)
            for row in chosen.tolist():
                listed[self.start + row] = other[row].to(value[0])
            return listed
        if self.whole and bool(self.rows.all()):
            return other.to(value) if isinstance(value, Tensor) else other
        if self.loop.mask:
            value, other = _of_one_length(value, other)
        if value.shape == other.shape and other.shape[axis] != len(self.rows):
            return value  # places of the tokens, the same for every text
        if _without(value.shape, axis) != _without(other.shape, axis):
            raise InputError(
                f"guidance: expected texts of one length in a call of the denoiser, got {name} of {tuple(value.shape)}"
                f" for the prompts and {tuple(other.shape)} for the names. Leave max_sequence_length to the pipeline,"
                " or sample one prompt a call."
            )
        chosen = chosen.to(value.device)
        return value.index_copy(axis, self.start + chosen, other.to(value).index_select(axis, chosen))


def _of_one_length(*texts: Tensor) -> list[Tensor]:
    """Return states or masks (n, tokens, ...) with zeros behind the shorter ones."""
    longest = max(text.shape[1] for text in texts)
    return [F.pad(text, (*[0, 0] * (text.ndim - 2), 0, longest - text.shape[1])) for text in texts]


def _without(shape: Sequence[int], axis: int) -> list[int]:
    return [size for i, size in enumerate(shape) if i != axis]


def stacked(output: Sample) -> Tensor:
    """Return the denoiser's output with a row for each image."""
    return output if isinstance(output, Tensor) else torch.stack(list(output))


def first_of(result: Output) -> Any:
    """Return the first value of a result of diffusers."""
    return result[0]


def with_first(result: Output, change: Callable[[Any], Any]) -> Output:
    """Return a result of diffusers with its first value changed."""
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    name = next(iter(result))
    return type(result)(**{**result, name: change(result[name])})


def cloned(generators: Generators) -> Generators:
    """Return generators that draw what these will."""
    if isinstance(generators, Sequence):
        return [None if generator is None else generator.clone_state() for generator in generators]
    return None if generators is None else generators.clone_state()


def with_sample(
    args: tuple[Any, ...], kwargs: dict[str, Any], latents: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `scheduler.step(model_output, timestep, sample, ...)` with another sample."""
    if len(args) > 2:
        return (*args[:2], latents.to(args[2].dtype), *args[3:]), kwargs
    return args, {**kwargs, "sample": latents.to(kwargs["sample"].dtype)}


def sample_of(denoiser: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sample, dict[str, Any]]:
    """Return the denoiser's first argument, however it was given, and the others by name."""
    names = list(inspect.signature(type(unwrapped(denoiser)).forward).parameters)[1:]
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    return arguments.pop(names[0]), arguments


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """Result of the scheduler's step.

    Attributes:
        prediction: The guided prediction that the loop made of the denoiser's output, one row an image.
        previous: The latents after the step.
        scheduler: As it was before the first step of the loop.
        options: The loop's further arguments to the scheduler, with generators as they were before the step.
    """

    prediction: Tensor
    previous: Latents
    scheduler: Any
    options: Mapping[str, Any]
