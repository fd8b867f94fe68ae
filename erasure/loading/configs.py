"""Check of a model's configurations, by which its components are built before a weight is read."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ..errors import InputError
from ..io.text import shortened

# Largest number by a part of its key. A module is built for every layer, and an array holds every timestep; no known
# model is near either. What is above the last bound is no size at all.
_LARGEST = {"layers": 1000, "timesteps": 10**6}
_LARGEST_OF_ALL = 10**9
_UNBOUNDED = "max_length"  # transformers writes 10^30 where a tokenizer has none; it is compared with the encoder
_INFINITE = "lambda_min_clipped"  # of schedulers: minus infinity where nothing is clipped


def check_configs(folder: Path) -> None:
    """Refuse a model's folder with a configuration that says nothing by keys, or has a number that no model has.

    Such a number is not finite, or so large that building the model would fill the memory.

    Raises:
        InputError: A configuration is such; the error names file and key.
    """
    for file in sorted(folder.glob("*/*config.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # the reader of that component says it
        if not isinstance(content, dict):  # diffusers would look for a name on the Hub
            raise InputError(
                f"model: expected a complete diffusers model in {str(file.parent)!r}, got {shortened(content)} in"
                f" {file.name}. Save or download the model again."
            )
        for key, number in _numbers(content):
            _check(file, key, number)


def _check(file: Path, key: str, number: int | float) -> None:
    if isinstance(number, float):
        expected = "" if math.isfinite(number) or (key == _INFINITE and number < 0) else f"a finite {key}"
    else:
        largest = next((most for part, most in _LARGEST.items() if part in key), _LARGEST_OF_ALL)
        fits = abs(number) <= largest or key.endswith(_UNBOUNDED)
        expected = "" if fits else f"a {key} of at most {largest:,}"
    if expected:
        raise InputError(
            f"model: expected {expected} in {str(file)!r}, got {shortened(number)}. Copy or download the file again."
        )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int | float]]:
    """Give the numbers of a value of JSON, each with the nearest key above it."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
