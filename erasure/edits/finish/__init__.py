"""Finishes: changes of a fitted edit, one a file; a file is found by its being here."""

from ...registry import Registry
from .base import Finish

__all__ = ["FINISHES", "Finish"]

FINISHES = Registry(Finish, "finish")
