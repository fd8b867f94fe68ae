"""A benchmark of two prompts."""

from dataclasses import dataclass
from typing import ClassVar

from erasure.eval.benchmarks import Benchmark, Item
from erasure.registry import Exactness


@dataclass(frozen=True, kw_only=True)
class AddedBenchmark(Benchmark):
    """One prompt of the target and one of a neighbour.

    Attributes:
        seed: Seed of the noise, >= 0.
    """

    name: ClassVar[str] = "added-benchmark"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    version: ClassVar[int] = 1
    licence: ClassVar[str] = "Apache-2.0"
    seeds: ClassVar[str] = "the setting"
    published_scheduler: ClassVar[str] = "DDIMScheduler"
    steps: ClassVar[int] = 25
    guidance_scale: ClassVar[float] = 4.0
    lists: ClassVar[tuple[str, ...]] = ()

    seed: int = 0

    def read(self) -> tuple[Item, ...]:
        return (
            Item(case="target", prompt="a photo of a cat", seed=self.seed, group="removed", unwanted="cat"),
            Item(case="neighbour", prompt="a photo of a dog", seed=self.seed, group="kept", retained="dog"),
        )
