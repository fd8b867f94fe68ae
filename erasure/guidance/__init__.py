"""Guidance: changes of the sampling, one a file; a file is found by its being here."""

from ..registry import Registry
from .base import Applicable, Guidance

__all__ = ["GUIDANCES", "Applicable", "Guidance", "guidances"]

GUIDANCES = Registry(Guidance, "guidance")
guidances = GUIDANCES.classes
