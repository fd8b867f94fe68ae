"""Benchmarks: named, versioned sets of prompts and seeds, one a file; a file is found by its being here."""

from functools import cache

from erasure.errors import unknown_name
from erasure.registry import classes_in

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
    return classes_in(__name__, __path__, Benchmark)
