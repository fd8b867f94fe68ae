"""Settings of the erasers as fields of a form: numbers, choices and switches."""

import re
import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from erasure.erasers import eraser_class
from erasure.registry import described
from erasure.runs.configs import starting_settings

_LARGEST = {"whole": (100.0, 10.0), "number": (1000.0, 100.0)}
"""Largest number of each kind that a visitor may set: the larger of the first, and the second times the default."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of an eraser.

    Attributes:
        name: Field of the eraser.
        kind: Kind of the form field.
        value: Default on this model.
        choices: Values of a choice.
        about: Description in a few words.
        main: Whether it is shown first.
        low: Least number that a visitor may set; None for a choice or a switch.
        high: Largest number that a visitor may set; None likewise.
    """

    name: str
    kind: Literal["number", "whole", "choice", "switch"]
    value: str | int | float | bool | None
    choices: tuple[str, ...]
    about: str
    main: bool
    low: float | None = None
    high: float | None = None


@cache
def offered(method: str, model: str) -> tuple[Setting, ...]:
    """Return the settings of an eraser that a visitor may set; texts, which may name files, are left out.

    Raises:
        UnknownNameError: The eraser does not exist.
    """
    kind = eraser_class(method)
    hints, about = get_type_hints(kind, include_extras=True), described(kind)
    start = starting_settings(method, model)
    settings = []
    for item in fields(kind):
        field_kind, choices = _kind_of(hints[item.name])
        if field_kind is not None and (
            start[item.name] is None or not isinstance(start[item.name], list | tuple | dict)
        ):
            low, high = _range(hints[item.name], field_kind, start[item.name])
            settings.append(
                Setting(
                    name=item.name,
                    kind=field_kind,
                    value=start[item.name],
                    choices=choices,
                    about=_first_words(about.get(item.name, "")),
                    main=item.name in kind.main,
                    low=low,
                    high=high,
                )
            )
    return tuple(sorted(settings, key=lambda setting: (not setting.main, _place(kind.main, setting.name))))


def _place(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else len(names)


def summary(method: str) -> str:
    """Return the description of an eraser, in one line."""
    return (eraser_class(method).__doc__ or "").strip().partition("\n")[0]


def _kind_of(hint: object) -> tuple[Literal["number", "whole", "choice", "switch"] | None, tuple[str, ...]]:
    if get_origin(hint) is Annotated:
        return _kind_of(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_kind_of(part) for part in get_args(hint) if part is not type(None)]
        return next((kind for kind in kinds if kind[0] is not None), (None, ()))
    if get_origin(hint) is Literal:
        return "choice", get_args(hint)
    return {float: "number", int: "whole", bool: "switch"}.get(hint), ()  # type: ignore[return-value]


def _range(hint: object, kind: str, default: object) -> tuple[float | None, float | None]:
    """Return the range that a visitor may set: the field's own, closed by a multiple of the default.

    A field is often open above; a visitor could hold the one model for good by its number of steps.
    """
    if kind not in _LARGEST:
        return None, None
    least, factor = _LARGEST[kind]
    largest = max(least, factor * abs(default)) if isinstance(default, int | float) else least
    lows, highs = _bounds(hint)
    return max([-largest, *lows]), min([largest, *highs])


def _bounds(hint: object) -> tuple[list[float], list[float]]:
    """Return the lower and the upper bounds in the annotations of a type."""
    lows: list[float] = []
    highs: list[float] = []
    for part in get_args(hint):
        more = getattr(part, "metadata", ())
        for mark in (part, *(more if isinstance(more, list | tuple) else ())):
            lows += [float(value) for key in ("ge", "gt") if (value := getattr(mark, key, None)) is not None]
            highs += [float(value) for key in ("le", "lt") if (value := getattr(mark, key, None)) is not None]
        inner = _bounds(part) if get_args(part) else ([], [])
        lows, highs = lows + inner[0], highs + inner[1]
    return lows, highs


def _first_words(text: str) -> str:
    """Return the first phrase of a description, for the little room of a form."""
    return re.split(r"[.;:] |, >|, in [\[(]| \(", text, maxsplit=1)[0].rstrip(".")
