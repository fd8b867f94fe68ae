"""Records of an audit: the judged outcomes of one probe on one row, kept as soon as they are there."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.io.json_files import json_digest
from erasure.judge import Judge, shows_each
from erasure.progress import StoppedError

from ...images.png import as_png
from ...probes import Aim, Outcome

FORMAT = 1
BEST = 3
"""Number of images kept of each outcome: those that most likely show the concept."""


class ShownImage(TypedDict):
    """Image that an outcome keeps.

    Attributes:
        png: Data of the PNG file, in base64.
        prompt: Its prompt.
        seed: Its seed.
        probability: Probability that it shows the concept, in [0, 1].
        shows: Decision of the judge.
    """

    png: str
    prompt: str
    seed: int
    probability: float
    shows: bool


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Outcome at one dose, as the judge sees it.

    Attributes:
        dose: The dose.
        part: Name of the measure, for a probe with several.
        label: Words for the dose.
        values: 1 for each image that shows the concept and 0 for others; or the values of a probe that looks inside.
        kept: 1 for each image of a kept concept that shows it, else 0; empty where the dose does not touch them.
        floor: Value of a model without a trace, where that is known.
        comparable: Whether the values of another trained model are on the same scale.
        side_effect: Whether the values are a side effect, read as their difference to the original's.
        images: The most successful images.
    """

    dose: float
    part: str
    label: str
    values: tuple[float, ...]
    kept: tuple[float, ...] = ()
    floor: float | None = None
    comparable: bool = True
    side_effect: bool = False
    images: tuple[ShownImage, ...] = ()

    @classmethod
    def of(cls, outcome: Outcome, aim: Aim, judge: Judge | None, label: str) -> "Judged":
        """Return an outcome with the judge's decisions.

        Raises:
            InputError: Images without a judge, or not one for each prompt.
        """
        values, images = tuple(float(value) for value in outcome.values), tuple[ShownImage, ...]()
        if outcome.images:
            if judge is None:
                raise InputError("probe: expected a judge of the images, got none.")
            values, images = _seen(outcome, aim, judge)
        kept: tuple[float, ...] = ()
        if outcome.kept and judge is not None:
            kept = tuple(map(float, shows_each(judge, outcome.kept, [name for name, *_ in aim.kept])))
        return cls(
            dose=float(outcome.dose),
            part=outcome.part,
            label=outcome.label or label,
            values=values,
            kept=kept,
            floor=outcome.floor,
            comparable=outcome.comparable,
            side_effect=outcome.side_effect,
            images=images,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {
            **vars(self),
            "values": list(self.values),
            "kept": list(self.kept),
            "images": [dict(image) for image in self.images],
        }


class _Unit(TypedDict):
    """Content of the file of one probe on one row."""

    key: dict[str, Any]
    seconds: float
    outcomes: list[Judged]


@dataclass(frozen=True, kw_only=True)
class UnitFile:
    """File of one probe on one row, named by everything that decides it.

    Attributes:
        folder: Folder of the files.
        key: Everything that decides the outcomes, as plain data.
    """

    folder: Path
    key: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{_digest(self.key)}.json"

    def read(self) -> tuple[list[Judged], float] | None:
        """Return the outcomes and the seconds that they took; None if there are none, or no whole ones of this key."""
        try:
            unit = TypeAdapter(_Unit).validate_json(self.path.read_bytes(), strict=True)
        except (OSError, ValidationError):
            return None  # it is measured again
        if _digest(unit["key"]) != self.path.stem:
            return None
        return unit["outcomes"], unit["seconds"]

    def write(self, outcomes: Sequence[Judged], seconds: float) -> None:
        """Write the outcomes, whole.

        Raises:
            StoppedError: The folder cannot be written: what comes after these could not be kept either.
        """
        data = {"key": self.key, "seconds": seconds, "outcomes": [outcome.as_json() for outcome in outcomes]}
        try:
            make_folder(self.folder)
            write_whole(self.path, json.dumps(data, ensure_ascii=False).encode())
        except InputError as error:
            raise StoppedError(f"audit: {error} The same command goes on with what was measured.") from None


def _digest(key: Mapping[str, Any]) -> str:
    return json_digest([FORMAT, key])[:32]


def _seen(outcome: Outcome, aim: Aim, judge: Judge) -> tuple[tuple[float, ...], tuple[ShownImage, ...]]:
    images = outcome.images
    pairs = outcome.pairs or list(zip(aim.prompts, aim.seeds, strict=True))
    if len(images) != len(pairs):
        raise InputError(f"probe: expected an image for each of {len(pairs)} prompts, got {len(images)}.")
    target = outcome.shows or aim.concept.target
    values = tuple(map(float, judge.shows(images, target)))
    likely = judge.probabilities(images, target)
    order = torch.argsort(likely, descending=True, stable=True)[:BEST].tolist()
    best = [
        ShownImage(
            png=base64.b64encode(as_png(images[i])).decode(),
            prompt=pairs[i][0],
            seed=pairs[i][1],
            probability=round(float(likely[i]), 4),
            shows=bool(values[i]),
        )
        for i in order
    ]
    return values, tuple(best)
