"""Classes found by lying in a package: a new eraser or benchmark is one new file."""

import inspect
import pkgutil
from abc import ABC
from collections.abc import Iterable
from importlib import import_module
from typing import ClassVar, TypeVar


class Plugin(ABC):
    """What is found so.

    Attributes:
        name: Tells one from another.
    """

    name: ClassVar[str]


AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)


def classes_in(package: str, path: Iterable[str], base: type[AnyPlugin]) -> dict[str, type[AnyPlugin]]:
    """Return the concrete subclasses of `base` that the modules of a package define, by their `name`.

    Args:
        package: The package's `__name__`.
        path: Its `__path__`.
        base: What they derive from.
    """
    modules = [import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path)]
    here = [(module, kind) for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)]
    return {
        kind.name: kind
        for module, kind in here
        if issubclass(kind, base) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    }
