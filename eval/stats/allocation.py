"""Shares of a number of images, and a seed for each."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

Anything = TypeVar("Anything")


def share(total: int, parts: int, position: int) -> int:
    """Return how many of a total one of several parts gets; the parts add up to it and differ by one at most."""
    # Whoever gets one more is spread over the list, so that small totals do not all fall on its head.
    return total * (position + 1) // parts - total * position // parts


def evenly(items: Sequence[Anything], n: int) -> list[Anything]:
    """Return n of some items from all over their order, or all if there are no more."""
    return [items[at * len(items) // n] for at in range(n)] if len(items) > n else list(items)


def noise_seed(name: str, index: int, seed: int) -> int:
    """Return a noise seed of its own for each image of a name, the same on every machine."""
    return zlib.crc32(f"{name}:{index}:{seed}".encode()) % 2**31
