"""The models that erasers can see, one family a file; a file is found by its being here."""

import inspect
import pkgutil
from functools import cache
from importlib import import_module
from typing import Any, cast

from diffusers import DiffusionPipeline

from ..arguments import checks_arguments
from ..errors import InputError
from .base import Backbone
from .storage import is_stored, on_disk

__all__ = ["Backbone", "backbone_of", "families", "family_classes"]


@checks_arguments
def backbone_of(pipe: DiffusionPipeline) -> Backbone:
    """Return the pipeline as erasers see it.

    A pipeline class that has a `backbone` is seen by that: those of ours that are written out as one file.

    Raises:
        InputError: No backbone covers it, and the message lists the models that one does; or it has no scheduler.
    """
    if getattr(pipe, "scheduler", True) is None:
        raise InputError(f"model: expected a pipeline with a scheduler, got {type(pipe).__name__} without. Set one.")
    declared = getattr(type(pipe), "backbone", None)
    if declared is not None:
        return declared(pipe)
    # The more particular first: it is asked before what it refines.
    for family in sorted(family_classes(), key=lambda kind: -len(kind.__mro__)):
        if family.covers(pipe):
            kind = on_disk(family) if is_stored(pipe) else family
            return cast("Backbone", kind(pipe))
    raise InputError(
        f"backbone_of: expected a pipeline of {', '.join(families())}, got {type(pipe).__name__}."
        " Load one of those with diffusers."
    )


def families() -> tuple[str, ...]:
    """Return the model families that are covered, in words."""
    return tuple(words for family in family_classes() for words in family.covered)


@cache
def family_classes() -> tuple[Any, ...]:
    """Return the backbones' classes: those that say which pipelines they cover."""
    modules = [import_module(f".{info.name}", __name__) for info in pkgutil.iter_modules(__path__)]
    return tuple(
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if hasattr(kind, "covers") and kind.__module__ == module.__name__
    )
