"""Limits of visitors: their jobs, and their input, checked by type, length and count before use."""

from collections.abc import Mapping, Sequence
from typing import Any

from erasure.errors import InputError
from erasure.io.text import composed
from erasure.runs.seeds import read_seeds

from .forms import Setting

CONCEPTS, NAME, PROMPTS, PROMPT, SEEDS, IMAGES, STEPS, GUIDANCE = 8, 80, 6, 1000, 8, 24, 100, 30.0
KEPT = 60
TEXT = 200
SEED = 2**53
"""Largest seed: a browser's numbers are exact up to here."""
ALPHA = 100
BODY = 2**18
"""Largest request, in bytes."""
JOB_MINUTES = 30.0
"""Default of the longest time that a job may hold the model."""
WAITING_JOBS, VISITOR_JOBS = 20, 5
"""Jobs that wait, of all visitors together; jobs that wait or run, of one visitor."""
PER_MODEL = (20, 80)
"""Images a model of a measurement: the fewest, and those of the quick suite."""


def names(where: str, value: object, most: int = CONCEPTS) -> list[str]:
    """Return concept names without surrounding blanks and duplicates.

    Raises:
        InputError: The value is no list of texts, has too many, or one that is too long.
    """
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{where}: expected a list of names, got {_short(value)}. Give texts.")
    result = list(dict.fromkeys(name for text in value if (name := " ".join(text.split()))))
    if len(result) > most:
        raise InputError(f"{where}: expected at most {most} names, got {len(result)}. Take some out.")
    for name in result:
        if len(name) > NAME:
            raise InputError(
                f"{where}: expected names of at most {NAME} characters, got one of {len(name)}. Shorten it."
            )
    return result


def name(where: str, value: object) -> str:
    """Return one concept name, "" for none."""
    return next(iter(names(where, [value] if value else [])), "")


def text(where: str, value: object, most: int = TEXT) -> str:
    """Return a text without surrounding blanks.

    Raises:
        InputError: The value is no text, or too long.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, got {_short(value)}. Give a text.")
    if len(value) > most:
        raise InputError(f"{where}: expected at most {most} characters, got {len(value):,}. Shorten it.")
    return value.strip()


def prompts(value: object) -> list[str]:
    """Return prompts, from a list or a text with one a line.

    Raises:
        InputError: There is no prompt, too many, or one that is too long.
    """
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"prompts: expected texts, got {_short(value)}. Write one a line.")
    result = list(dict.fromkeys(text for line in lines if (text := composed(" ".join(line.split())))))
    if not result:
        raise InputError("prompts: expected at least one, got none. Write one prompt a line.")
    if len(result) > PROMPTS:
        raise InputError(f"prompts: expected at most {PROMPTS}, got {len(result)}. Write fewer lines.")
    for text in result:
        if len(text) > PROMPT:
            raise InputError(f"prompt: expected at most {PROMPT:,} characters, got {len(text):,}. Shorten it.")
    return result


def pairs(value: object, seeds: object) -> list[tuple[str, int]]:
    """Return every prompt with every seed.

    Raises:
        InputError: See `prompts` and `read_seeds`; or there are too many pairs.
    """
    numbers = read_seeds(str(seeds), "seeds", SEEDS)
    result = [(text, seed) for text in prompts(value) for seed in dict.fromkeys(numbers)]
    if len(result) > IMAGES:
        raise InputError(f"compare: expected at most {IMAGES} images, got {len(result)}. Give fewer seeds or prompts.")
    return result


def number(where: str, value: object, low: float | int, high: float | int) -> float:
    """Return a number in a range.

    Raises:
        InputError: The value is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{where}: expected a number from {low:,.16g} to {high:,.16g}, got {_short(value)}.")
    return float(value)


def whole(where: str, value: object, low: int, high: int) -> int:
    """Return a whole number in a range.

    Raises:
        InputError: The value is not one.
    """
    result = number(where, value, low, high)
    if result != int(result):
        raise InputError(f"{where}: expected a whole number, got {_short(value)}.")
    return int(result)


def settings(value: object, offered: Sequence[Setting]) -> dict[str, Any]:
    """Return settings of a method that a visitor may set, which exclude names of files.

    Raises:
        InputError: The value is no mapping, has another setting, or a number outside of its range.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"settings: expected settings by name, got {_short(value)}.")
    known = {setting.name: setting for setting in offered}
    result = dict(value)
    for key, content in value.items():
        if key not in known:
            raise InputError(f"settings: expected one of {', '.join(known)}, got {_short(key)}.")
        low, high = known[key].low, known[key].high
        if low is not None and high is not None and content is not None:
            checked = number(f"settings.{key}", content, low, high)
            if known[key].kind == "whole" and checked == int(checked):
                result[key] = int(checked)
    return result


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
