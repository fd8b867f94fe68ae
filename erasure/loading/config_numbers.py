"""Check of the numbers in a model's configuration, by which its components are built before a weight is read."""

import json
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


def check_numbers(folder: Path) -> None:
    """Refuse a model's folder with a whole number so large that building the model would fill the memory.

    Raises:
        InputError: A configuration has one; the error names file and key.
    """
    for file in sorted(folder.glob("*/*config.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # the reader of that component says it
        for key, number in _numbers(content):
            largest = next((most for part, most in _LARGEST.items() if part in key), _LARGEST_OF_ALL)
            if abs(number) > largest and not key.endswith(_UNBOUNDED):
                raise InputError(
                    f"model: expected a {key} of at most {largest:,} in {str(file)!r}, got {shortened(number)}."
                    " Copy or download the file again."
                )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Give the whole numbers of a value of JSON, each with the nearest key above it."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield from _numbers(inner, name)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _numbers(inner, key)
    elif isinstance(value, int):
        yield key, value
