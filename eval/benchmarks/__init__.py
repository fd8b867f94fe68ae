"""Benchmarks: named, versioned sets of prompts and seeds, one a file; a file is found by its being here."""

import inspect
import pkgutil
from functools import cache
from importlib import import_module

from erasure.errors import unknown_name

from .base import Benchmark, Item, Wording

__all__ = ["Benchmark", "Item", "Wording", "benchmark_class", "benchmark_names"]


def benchmark_names() -> tuple[str, ...]:
    """Return the names of all benchmarks, sorted."""
    return tuple(sorted(_classes()))


def benchmark_class(name: str) -> type[Benchmark]:
    """Return the class of the benchmark `name`.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in _classes():
        raise unknown_name("benchmark", name, _classes())
    return _classes()[name]


@cache
def _classes() -> dict[str, type[Benchmark]]:
    modules = [import_module(f".{found.name}", __name__) for found in pkgutil.iter_modules(__path__)]
    here = [(module, kind) for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)]
    return {
        kind.name: kind
        for module, kind in here
        if issubclass(kind, Benchmark) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    }
