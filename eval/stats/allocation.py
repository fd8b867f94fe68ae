"""Shares of a number of images, and a seed for each."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

Anything = TypeVar("Anything")


def share(total: int, parts: int, position: int) -> int:
    """Return the count of one of several parts of a total; the parts add up to it and differ by at most one."""
    # The parts with one more are spread over the list, so that small totals do not all go to its head.
    return total * (position + 1) // parts - total * position // parts


def evenly(items: Sequence[Anything], n: int) -> list[Anything]:
    """Return n items, evenly spaced in their order; all if there are no more than n."""
    return [items[i * len(items) // n] for i in range(n)] if len(items) > n else list(items)


def noise_seed(name: str, index: int, seed: int) -> int:
    """Return the seed of the noise of the index-th image of a name, equal on every machine."""
    return zlib.crc32(f"{name}:{index}:{seed}".encode()) % 2**31
