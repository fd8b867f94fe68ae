"""Settings of the erasers as fields of a form: numbers, choices and switches."""

import re
import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from erasure.erasers import eraser_class
from erasure.registry import described
from erasure.runs.configs import starting_settings


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
    """

    name: str
    kind: Literal["number", "whole", "choice", "switch"]
    value: str | int | float | bool | None
    choices: tuple[str, ...]
    about: str
    main: bool


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
            settings.append(
                Setting(
                    name=item.name,
                    kind=field_kind,
                    value=start[item.name],
                    choices=choices,
                    about=_first_words(about.get(item.name, "")),
                    main=item.name in kind.main,
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


def _first_words(text: str) -> str:
    """Return the first phrase of a description, for the little room of a form."""
    return re.split(r"[.;:] |, >|, in [\[(]| \(", text, maxsplit=1)[0].rstrip(".")
