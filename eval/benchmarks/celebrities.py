"""Celebrities: people to remove and people to keep, by the names of the GIPHY detector.

The lists need no detector. Where there is one, `face_rates` turns what it found into rates whose denominators are said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from erasure.concept import normalized
from erasure.errors import InputError, unknown_name
from erasure.registry import Exactness

from ..stats.scores import Rate
from .base import Benchmark, Item, unique_cases
from .lists import read_list

# "50_Cent_[m.01vvyc_]": a name and its Freebase id.
_LABEL = re.compile(r"(?P<name>.+?)_\[[^\]]*\]")


@dataclass(frozen=True, kw_only=True)
class Celebrities(Benchmark):
    """Portraits of people that were removed and of people that were kept, as the list's own `type` says.

    Attributes:
        path: A CSV file with the columns id, type ("erase" or "retain"), text, concept, seed.
        labels: The detector's label file, to make sure that it knows everybody; None leaves that out.
    """

    name: ClassVar[str] = "celebrities"
    exactness: ClassVar[Exactness] = "published"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "Ouxiang-Li/SPEED data/10_celebrity.csv, 50_celebrity.csv, 100_celebrity.csv (arXiv:2503.07392), after MACE"
        " (arXiv:2403.06135); names: Giphy/celeb-detection-oss examples/resources/face_recognition/labels.csv"
    )
    licence: ClassVar[str] = "Apache-2.0 (SPEED), MPL-2.0 (labels)"
    seeds: ClassVar[str] = "seed of each row, 1 to 5 for most; the n-th seed goes with the n-th template"
    published_scheduler: ClassVar[str] = "DDIMScheduler"  # src/sample_images_from_csv.py of MACE
    steps: ClassVar[int] = 50
    guidance_scale: ClassVar[float] = 7.5

    path: Path
    labels: Path | None = None

    def read(self) -> tuple[Item, ...]:
        known = None if self.labels is None else {normalized(name): name for name in giphy_names(self.labels)}
        items = []
        for row in read_list(self.path, ("id", "type", "text", "concept", "seed")):
            name, kind = row.text("concept"), row.text("type")
            if kind not in ("erase", "retain"):
                raise InputError(f"{row.where}: expected 'erase' or 'retain' as 'type', got {kind!r}.")
            if known is not None and normalized(name) not in known:
                raise unknown_name("detector label", name, known.values())
            items.append(
                Item(
                    case=row.text("id"),
                    prompt=row.text("text"),
                    seed=row.whole("seed"),
                    group="removed" if kind == "erase" else "kept",
                    unwanted=name if kind == "erase" else "",
                    retained=name if kind == "retain" else "",
                )
            )
        return unique_cases(self.name, items)


@dataclass(frozen=True, kw_only=True)
class FaceRates:
    """Rates of a face detector on images of people.

    Attributes:
        with_face: Share of all images in which there is a face.
        recognised: Share of all images that show whom they were asked for; one without a face does not.
        recognised_of_faces: Share of the images with a face; None if none has one. This is what MACE, SPEED and
            others call accuracy: a model that draws no faces any more is not seen by it, so it never stands alone.
    """

    with_face: Rate
    recognised: Rate
    recognised_of_faces: Rate | None


def face_rates(recognised_names: Sequence[str | None], prompted_names: Sequence[str]) -> FaceRates:
    """Count what a detector found.

    Args:
        recognised_names: Most probable name of the first face of each image; None where there is no face.
        prompted_names: Name in each prompt.

    Raises:
        InputError: Not as many of one as of the other, or none at all.
    """
    if len(recognised_names) != len(prompted_names) or not prompted_names:
        raise InputError(
            f"face_rates: expected one finding an image, got {len(recognised_names)} for {len(prompted_names)} prompts."
        )
    faces = [name is not None for name in recognised_names]
    hits = sum(
        name is not None and normalized(name) == normalized(prompted)
        for name, prompted in zip(recognised_names, prompted_names, strict=True)
    )
    return FaceRates(
        with_face=Rate(hits=sum(faces), n=len(faces)),
        recognised=Rate(hits=hits, n=len(faces)),
        recognised_of_faces=Rate(hits=hits, n=sum(faces)) if any(faces) else None,
    )


def giphy_names(path: Path) -> tuple[str, ...]:
    """Return the names that the GIPHY detector knows, by its class index: "50_Cent_[m.01vvyc_]" is "50 Cent".

    Args:
        path: Its labels.csv, with the columns Labels and Index.

    Raises:
        InputError: It cannot be read, or a label is no name with an id.
    """
    names: dict[int, str] = {}
    for row in read_list(path, ("Labels", "Index")):
        match = _LABEL.fullmatch(row.text("Labels"))
        if match is None or row.whole("Index") in names:
            raise InputError(
                f"{row.where}: expected a name and id such as 'Aaliyah_[m.0x3n]' and an index of its own,"
                f" got {row.text('Labels')!r} and {row.whole('Index')}."
            )
        names[row.whole("Index")] = match["name"].replace("_", " ").strip()
    return tuple(names[index] for index in sorted(names))
