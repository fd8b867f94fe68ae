"""YAML 1.2 as plain data: texts, finite numbers, lists and keys, of a bounded size."""

import math
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import MappingEndEvent, MappingStartEvent, SequenceEndEvent, SequenceStartEvent

from ..errors import InputError
from .text import one_line, shortened

_MOST_CHARACTERS = 500_000
_MOST_DEPTH = 32
_MOST_BRACKETS = 200
_MOST_VALUES = 100_000
_LARGEST = 2**64
# What constructors of values raise beside YAMLError, for "!!int x", "2020-99-99" or a number of 5,000 digits.
_UNREADABLE = (YAMLError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError)


def plain_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text, as JSON has it; aliases are copied.

    Args:
        text: The text.
        where: Name of the text in errors.

    Raises:
        InputError: It is not YAML, holds something else than plain data, or is too long, too deep or, with its aliases
            written out, too large.
    """
    if len(text) > _MOST_CHARACTERS:
        raise InputError(f"{where}: expected at most {_MOST_CHARACTERS:,} characters, got {len(text):,}. Shorten it.")
    try:
        _check_depth(text, where)
        value = YAML(typ="safe", pure=True).load(text)
    except InputError:
        raise
    except _UNREADABLE as error:
        said = one_line(str(error)) or type(error).__name__
        raise InputError(f"{where}: expected YAML, got {shortened(said)}. Quote what is meant as text.") from None
    return _Plain(where).copy(value, ())


class _Plain:
    """Copies of values as plain data, counted.

    Args:
        where: Name of the text in errors.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._count = 0

    def copy(self, value: object, path: tuple[object, ...]) -> Any:
        """Return a copy of the value at a path.

        Raises:
            InputError: It is no plain data, or there are too many values or levels of it.
        """
        self._count += 1
        if self._count > _MOST_VALUES or len(path) > _MOST_DEPTH:
            raise InputError(
                f"{self._where}: expected at most {_MOST_VALUES:,} values on {_MOST_DEPTH} levels, got more."
                " Write fewer, or no aliases."
            )
        if isinstance(value, list):
            return [self.copy(each, (*path, i)) for i, each in enumerate(value)]
        if isinstance(value, dict):
            return {self._key(key, path): self.copy(each, (*path, key)) for key, each in value.items()}
        if not _is_plain(value):
            place = f"{self._where} {'.'.join(map(str, path))}".rstrip()
            raise InputError(
                f"{place}: expected a text, a finite number below 2^64, true, false or null, got {shortened(value)}."
                " Quote it if it is a text."
            )
        return value

    def _key(self, key: object, path: tuple[object, ...]) -> str:
        if not isinstance(key, str) or not _is_plain(key):
            place = f"{self._where} {'.'.join(map(str, path))}".rstrip()
            raise InputError(f"{place}: expected names as keys, got {shortened(key)}. Quote it if it is a text.")
        return key


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= sign <= "\udfff" for sign in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < _LARGEST
    return isinstance(value, float) and math.isfinite(value)


def _check_depth(text: str, where: str) -> None:
    """Refuse a text of many levels before it is built, which is recursive."""
    open_brackets = 0
    for sign in text:  # the parser takes the square of their number
        open_brackets += (sign in "[{") - (sign in "]}")
        if open_brackets > _MOST_BRACKETS:
            raise InputError(f"{where}: expected at most {_MOST_DEPTH} levels, got more. Write fewer.")
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise InputError(f"{where}: expected at most {_MOST_DEPTH} levels, got more. Write fewer.")
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            depth -= 1
