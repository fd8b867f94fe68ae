"""Selectors of the weights that a training may change, one a file; a file is found by its being here."""

from ...registry import Registry
from .base import Selection, Selector

__all__ = ["SELECTORS", "Selection", "Selector"]

SELECTORS = Registry(Selector, "selector")
