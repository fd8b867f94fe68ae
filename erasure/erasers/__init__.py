"""The erasers, one method a file; a file is found by its being here."""

from dataclasses import fields
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from ..errors import InputError, unknown_name
from ..plugins import classes_in
from .base import Eraser, History, Shows, Step

__all__ = ["Eraser", "History", "Shows", "Step", "eraser_class", "eraser_names", "make_eraser"]


def eraser_names() -> tuple[str, ...]:
    """Return the names of all erasers, sorted."""
    return tuple(sorted(_classes()))


def eraser_class(name: str) -> type[Eraser]:
    """Return the class of the eraser `name`.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _classes():
        raise unknown_name("eraser", name, _classes())
    return _classes()[name]


def make_eraser(name: str, **settings: Any) -> Eraser:
    """Return the eraser `name` with `settings`, checked strictly: the text "1.0" is no number.

    Raises:
        UnknownNameError: There is no such eraser, or it has no such setting.
        InputError: Values of a wrong type or out of range, all named at once.
    """
    kind = eraser_class(name)
    known = [item.name for item in fields(kind)]
    for key in settings:
        if key not in known:
            raise unknown_name(f"{name} setting", key, known)
    try:
        # In strict mode only JSON can be read as a dataclass; its arrays become the tuples of the fields.
        return TypeAdapter(kind).validate_json(to_json(settings), strict=True)
    except ValidationError as error:
        raise InputError(_one_line(name, error)) from error


@cache
def _classes() -> dict[str, type[Eraser]]:
    return classes_in(__name__, __path__, Eraser)


def _one_line(name: str, error: ValidationError) -> str:
    problems = [
        f"{'.'.join([name, *map(str, problem['loc'])])}: {_lowered(problem['msg'])}, got {problem['input']!r}."
        for problem in error.errors()
    ]
    return " ".join(problems)


def _lowered(message: str) -> str:
    """Turn pydantic's "Input should be ..." into this library's "expected ..."."""
    said = message.removeprefix("Value error, ")
    for pydantic, ours in ((" be greater", " be a number greater"), (" be less", " be a number less")):
        said = said.replace(f"Input should{pydantic}", f"Input should{ours}")
    return said.replace("Input should be", "expected")
