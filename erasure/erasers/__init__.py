"""Erasers, one method a file; a file is found by its being here."""

from ..registry import Registry
from .base import Eraser

__all__ = ["ERASERS", "Eraser", "eraser_class", "eraser_names", "make_eraser"]

ERASERS = Registry(Eraser, "eraser")
eraser_class, eraser_names, make_eraser = ERASERS.get, ERASERS.names, ERASERS.make
