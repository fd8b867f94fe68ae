"""Imagenette: the ten ImageNet classes of the ESD and UCE tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from erasure.registry import Exactness

from ..metrics.accuracy import IMAGENETTE as CLASSES
from .base import Item, LabelledList
from .lists import read_list


@dataclass(frozen=True, kw_only=True)
class Imagenette(LabelledList):
    """Prompts of the ten classes, with the classes to be judged by a classifier's index.

    UCE's list has 10 x 500 prompts "an image of a(n) X", ESD's has 10 x 10 "Image of X"; RECE's, in the same columns,
    describes the class in sentences, some of which do not name it, and is read
    with its commas unquoted, as published.

    Attributes:
        path: A CSV file with the columns case_number, prompt, evaluation_seed, class.
    """

    name: ClassVar[str] = "imagenette"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "rohitgandikota/unified-concept-editing data/imagenette.csv (arXiv:2308.14761);"
        " rohitgandikota/erasing data/small_imagenet_prompts.csv (arXiv:2303.07345);"
        " CharlesGong12/RECE dataset/robust_imagenette.csv (arXiv:2407.12383)"
    )
    licence: ClassVar[str] = "MIT (ESD, UCE), Apache-2.0 (RECE)"
    seeds: ClassVar[str] = "evaluation_seed of each row; in UCE's list some (prompt, seed) pairs repeat"
    # eval-scripts/generate-images.py of ESD and UCE; ESD makes ten images a row from one seed, we make the first.
    published_scheduler: ClassVar[str] = "LMSDiscreteScheduler"
    steps: ClassVar[int] = 100
    guidance_scale: ClassVar[float] = 7.5
    classes: ClassVar[Mapping[str, int]] = CLASSES
    classifier: ClassVar[str] = "resnet50"  # torchvision's, as in ESD and UCE

    path: Path

    def read(self) -> tuple[Item, ...]:
        rows = read_list(self.path, ("case_number", "prompt", "evaluation_seed", "class"), unquoted="prompt")
        return self.classed_items(rows)
