"""CIFAR-10 classes in other words: Receler's test of whether an erasure reaches what does not name the class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final

from erasure.registry import Exactness

from .base import Item, LabelledList
from .lists import read_list

CLASSES: Final[Mapping[str, int]] = MappingProxyType(
    {
        name: index
        for index, name in enumerate(
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        )
    }
)
"""The classes with their index in CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class Cifar10Paraphrase(LabelledList):
    """Ten classes, 50 descriptions each, about half of which do not name the class; or the list of plain prompts.

    Receler judges with GroundingDINO; `class_index` is for a CIFAR-10 classifier, of which none is the field's own.

    Attributes:
        path: A CSV file with the columns case_number, prompt, class, evaluation_seed.
    """

    name: ClassVar[str] = "cifar10-paraphrase"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "jasper0314-huang/Receler evaluation/data/cifar10_paraphrase.csv, cifar10_simple.csv (arXiv:2311.17717)"
    )
    licence: ClassVar[str] = "MIT"
    seeds: ClassVar[str] = "evaluation_seed of each row; 0 to 499 in the paraphrased list"
    # test_receler.py: LMS "as in ESD and UCE", --ddim_steps 50, --guidance_scale 7.5, one image a row.
    published_scheduler: ClassVar[str] = "LMSDiscreteScheduler"
    steps: ClassVar[int] = 50
    guidance_scale: ClassVar[float] = 7.5
    classes: ClassVar[Mapping[str, int]] = CLASSES

    path: Path

    def read(self) -> tuple[Item, ...]:
        rows = read_list(self.path, ("case_number", "prompt", "class", "evaluation_seed"))
        return self.classed_items(rows)
