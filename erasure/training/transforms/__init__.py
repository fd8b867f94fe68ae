"""Transforms of gradients and steps, one a file; a file is found by its being here."""

from ...registry import Registry
from .base import Transform

__all__ = ["TRANSFORMS", "Transform"]

TRANSFORMS = Registry(Transform, "transform")
