"""The erasers, one method a file; a file is found by its being here."""

from functools import cache
from typing import Any

from ..errors import unknown_name
from ..registry import classes_in, with_settings
from .base import Eraser

__all__ = ["Eraser", "eraser_class", "eraser_names", "make_eraser"]


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
    return with_settings(eraser_class(name), settings, where=f"{name}.")


@cache
def _classes() -> dict[str, type[Eraser]]:
    return classes_in(__name__, __path__, Eraser)
