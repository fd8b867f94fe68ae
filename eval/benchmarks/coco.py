"""COCO-30k: captions of everyday images, for what an erasure does to all else."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from erasure.errors import InputError
from erasure.registry import Exactness

from .base import Benchmark, Item, unique_cases
from .lists import read_list


@dataclass(frozen=True, kw_only=True)
class Coco(Benchmark):
    """The first n captions of the COCO-30k list that ESD, UCE, MACE, RECE and SPM share.

    Attributes:
        path: A CSV file with the columns case_number, prompt, evaluation_seed.
        limit: Number of captions from the top; None takes all. Published numbers are for 30,000, 10,000, 5,000 and
            1,000; distances of different n are not comparable.
    """

    name: ClassVar[str] = "coco"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "rohitgandikota/unified-concept-editing data/coco_30k.csv (arXiv:2308.14761);"
        " Con6924/SPM benchmark/coco_30k.csv (arXiv:2312.16145); captions: COCO 2014 validation"
    )
    licence: ClassVar[str] = "MIT (UCE), Apache-2.0 (SPM); captions CC BY 4.0"
    seeds: ClassVar[str] = "evaluation_seed of each row"
    published_scheduler: ClassVar[str] = "LMSDiscreteScheduler"  # eval-scripts/generate-images.py of UCE
    steps: ClassVar[int] = 100
    guidance_scale: ClassVar[float] = 7.5

    path: Path
    limit: int | None = None

    def read(self) -> tuple[Item, ...]:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"coco.limit: expected at least 1, got {self.limit!r}.")
        rows = read_list(self.path, ("case_number", "prompt", "evaluation_seed"), limit=self.limit)
        items = [
            Item(
                case=row.text("case_number"),
                prompt=row.text("prompt"),
                seed=row.whole("evaluation_seed"),
                group="kept",
            )
            for row in rows
        ]
        return unique_cases(self.name, items)
