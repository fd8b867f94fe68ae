"""Parts of the denoiser's arguments and results, whatever their types."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def rows_of(value: Any, batch: int, part: slice) -> Any:
    """Return a value of the denoiser's arguments with each tensor of `batch` rows cut to some of them."""
    if isinstance(value, Tensor):
        return value[part] if value.ndim > 0 and len(value) == batch else value
    if isinstance(value, Mapping):
        return {key: rows_of(inner, batch, part) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rows_of(inner, batch, part) for inner in value)
    return value


def with_first(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a result of diffusers, a tuple or an output with fields, with its first value changed."""
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    name = next(iter(result))
    return type(result)(**{**result, name: change(result[name])})
