"""Parts of the denoiser's arguments and results, whatever their types, and the result of a step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor

Value = TypeVar("Value")
Latents = Float[Tensor, "n c h w"]
Output = BaseOutput | tuple[Any, ...]
"""A result of diffusers: a tuple, or an output with fields."""

Generators = torch.Generator | Sequence[torch.Generator | None] | None
"""The generator of a loop, or one for each image."""


def rows_of(value: Value, batch: int, part: slice) -> Value:
    """Return a value of the denoiser's arguments with each tensor of `batch` rows cut to some of them."""
    return cast(Value, _rows_of(value, batch, part))


def _rows_of(value: object, batch: int, part: slice) -> object:
    if isinstance(value, Tensor):
        return value[part] if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: _rows_of(inner, batch, part) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows_of(inner, batch, part) for inner in value)
    return value


def with_first(result: Output, change: Callable[[Tensor], Tensor]) -> Output:
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


def sample_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return the denoiser's first argument, however it was given, and the others."""
    if args:
        return args[0], args[1:], kwargs
    first = "sample" if "sample" in kwargs else "hidden_states"  # of a UNet, of a transformer
    return kwargs[first], (), {key: value for key, value in kwargs.items() if key != first}


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
