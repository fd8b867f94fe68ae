"""Benchmarks: named, versioned sets of prompts and seeds, one a file; a file is found by its being here."""

from erasure.registry import Registry

from .base import Benchmark, Item, Wording

__all__ = ["BENCHMARKS", "Benchmark", "Item", "Wording", "benchmark_class", "benchmark_names"]

BENCHMARKS = Registry(Benchmark, "benchmark")
benchmark_class, benchmark_names = BENCHMARKS.get, BENCHMARKS.names
