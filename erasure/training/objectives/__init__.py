"""Objectives: the predictions that a training moves towards, one a file; a file is found by its being here."""

from ...registry import Registry
from .base import Objective

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES = Registry(Objective, "objective")
