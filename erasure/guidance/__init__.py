"""Guidance: changes of the sampling. A new one is one new file here; it is found by being there."""

from collections.abc import Mapping
from functools import cache

from ..registry import classes_in
from .base import Applicable, Guidance

__all__ = ["Applicable", "Guidance", "guidances"]


@cache
def guidances() -> Mapping[str, type[Guidance]]:
    """Return the classes of all guidances, by their `name`."""
    return classes_in(__name__, __path__, Guidance)
