"""Ways to bring a removed concept back, one a file; a file is found by its being here."""

from functools import cache

from erasure.errors import unknown_name
from erasure.registry import classes_in

from .base import Attack, Goal

__all__ = ["Attack", "Goal", "attack_class", "attack_names"]


def attack_names() -> tuple[str, ...]:
    """Return the names of all attacks, sorted."""
    return tuple(sorted(_classes()))


def attack_class(name: str) -> type[Attack]:
    """Return the class of the attack `name`.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _classes():
        raise unknown_name("attack", name, _classes())
    return _classes()[name]


@cache
def _classes() -> dict[str, type[Attack]]:
    return classes_in(__name__, __path__, Attack)
