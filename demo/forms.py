"""The settings of the erasers as fields of a form: those that are numbers, choices or switches."""

import re
import types
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from erasure.erasers import eraser_class
from erasure.registry import described
from erasure.runs.configs import starting_settings


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting.

    Attributes:
        name: The eraser's field.
        kind: How it is asked for.
        value: To start from.
        choices: Of a choice.
        about: What it does, in a few words.
        main: Whether it is one of those that a person turns first.
    """

    name: str
    kind: Literal["number", "whole", "choice", "switch"]
    value: Any
    choices: tuple[str, ...]
    about: str
    main: bool


@cache
def offered(method: str, model: str) -> tuple[Setting, ...]:
    """Return the settings of an eraser that may be set from a browser.

    Texts are left out: some of them name files.

    Raises:
        UnknownNameError: There is no such eraser.
    """
    kind = eraser_class(method)
    hints, about = get_type_hints(kind, include_extras=True), described(kind)
    start = starting_settings(method, model)
    found = []
    for item in fields(kind):
        asked, choices = _asked(hints[item.name])
        if asked is not None and (start[item.name] is None or not isinstance(start[item.name], list | tuple | dict)):
            found.append(
                Setting(
                    name=item.name,
                    kind=asked,
                    value=start[item.name],
                    choices=choices,
                    about=_first_words(about.get(item.name, "")),
                    main=item.name in kind.main,
                )
            )
    return tuple(sorted(found, key=lambda setting: (not setting.main, _place(kind.main, setting.name))))


def _place(names: tuple[str, ...], name: str) -> int:
    return names.index(name) if name in names else len(names)


def summary(method: str) -> str:
    """Return what an eraser does, in one line."""
    return (eraser_class(method).__doc__ or "").strip().partition("\n")[0]


def _asked(hint: Any) -> tuple[Literal["number", "whole", "choice", "switch"] | None, tuple[str, ...]]:
    if get_origin(hint) is Annotated:
        return _asked(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [_asked(part) for part in get_args(hint) if part is not type(None)]
        return next((kind for kind in kinds if kind[0] is not None), (None, ()))
    if get_origin(hint) is Literal:
        return "choice", get_args(hint)
    return {float: "number", int: "whole", bool: "switch"}.get(hint), ()  # type: ignore[return-value]


def _first_words(text: str) -> str:
    """Return what stands before the first stop: a form has little room, and the docs have the rest."""
    return re.split(r"[.;:] |, >|, in [\[(]| \(", text, maxsplit=1)[0].rstrip(".")
