"""What visitors may send: everything is checked here, by length and count, before anything reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

from erasure.errors import InputError
from erasure.runs.seeds import read_seeds

CONCEPTS, NAME, PROMPTS, PROMPT, SEEDS, PICTURES, STEPS, GUIDANCE = 8, 80, 6, 1000, 8, 24, 100, 30.0
KEPT = 60
TEXT = 200
PER_MODEL = (20, 80)
"""Pictures a model of the measure: the fewest that say anything, and the quick suite."""


def names(where: str, given: object, most: int = CONCEPTS) -> list[str]:
    """Return concept names without outer blanks and doubles.

    Raises:
        InputError: No list of texts, too many, or one that is too long.
    """
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{where}: expected a list of names, got {_short(given)}. Give texts.")
    found = list(dict.fromkeys(name for text in given if (name := " ".join(text.split()))))
    if len(found) > most:
        raise InputError(f"{where}: expected at most {most} names, got {len(found)}. Take some out.")
    for name in found:
        if len(name) > NAME:
            raise InputError(
                f"{where}: expected names of at most {NAME} characters, got one of {len(name)}. Shorten it."
            )
    return found


def name(where: str, given: object) -> str:
    """Return one concept name, "" for none."""
    return next(iter(names(where, [given] if given else [])), "")


def text(where: str, given: object, most: int = TEXT) -> str:
    """Return a text without outer blanks.

    Raises:
        InputError: No text, or one that is too long.
    """
    if not isinstance(given, str):
        raise InputError(f"{where}: expected a text, got {_short(given)}.")
    if len(given) > most:
        raise InputError(f"{where}: expected at most {most} characters, got {len(given):,}. Shorten it.")
    return given.strip()


def prompts(given: object) -> list[str]:
    """Return prompts: a list of them, or a text with one a line.

    Raises:
        InputError: None, too many, or one that is too long.
    """
    lines = given.splitlines() if isinstance(given, str) else given
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"prompts: expected texts, got {_short(given)}. Write one a line.")
    found = list(dict.fromkeys(text for line in lines if (text := " ".join(line.split()))))
    if not found:
        raise InputError("prompts: expected at least one, got none. Write what to draw, one prompt a line.")
    if len(found) > PROMPTS:
        raise InputError(f"prompts: expected at most {PROMPTS}, got {len(found)}. Write fewer lines.")
    for text in found:
        if len(text) > PROMPT:
            raise InputError(f"prompt: expected at most {PROMPT:,} characters, got {len(text):,}. Shorten it.")
    return found


def pairs(given: object, seeds: object) -> list[tuple[str, int]]:
    """Return every prompt with every seed.

    Raises:
        InputError: See `prompts` and `read_seeds`; or more pictures than are made at once.
    """
    numbers = read_seeds(str(seeds), "seeds", SEEDS)
    found = [(text, seed) for text in prompts(given) for seed in dict.fromkeys(numbers)]
    if len(found) > PICTURES:
        raise InputError(
            f"compare: expected at most {PICTURES} pictures, got {len(found)}. Give fewer seeds or prompts."
        )
    return found


def number(where: str, given: object, low: float | int, high: float | int) -> float:
    """Return a number in a range.

    Raises:
        InputError: It is none.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not low <= given <= high:
        raise InputError(f"{where}: expected a number from {low:g} to {high:g}, got {_short(given)}.")
    return float(given)


def whole(where: str, given: object, low: int, high: int) -> int:
    """Return a whole number in a range.

    Raises:
        InputError: It is none.
    """
    found = number(where, given, low, high)
    if found != int(found):
        raise InputError(f"{where}: expected a whole number, got {_short(given)}.")
    return int(found)


def settings(given: object, offered: Sequence[str]) -> dict[str, Any]:
    """Return settings of a method, of those that may be set from a browser: none that names a file.

    Raises:
        InputError: Another one, or no mapping.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"settings: expected settings by name, got {_short(given)}.")
    for key in given:
        if key not in offered:
            raise InputError(f"settings: expected one of {', '.join(offered)}, got {_short(key)}.")
    return dict(given)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
