"""Measures and images of a ledger, stored in its folder, and the content of its report."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired

from diffusers import DiffusionPipeline
from PIL import Image
from typing_extensions import TypedDict

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.backbones.storage import is_stored
from erasure.backbones.usable import check_call
from erasure.concept import Concept
from erasure.io.files import make_folder, write_whole
from erasure.io.json_files import record_if_whole
from erasure.io.processes import are_together, by_first, is_first
from erasure.judge import Judge, shows_each
from erasure.ledger import Entry, Ledger
from erasure.profile import ModelProfile, profile_of
from erasure.progress import OnProgress, staged
from erasure.runs.schema import MeasureSettings

from ..images.store import ImageStore, fill
from ..stats.allocation import evenly
from .health import Course, HealthRecord, checks_of, damages, health
from .plans import PlannedImage, pairs_of, plan_of
from .quick import measure

ORIGINAL = "original"
# A report is read, not searched: beyond these it keeps the first and the last.
MOST_COLUMNS = 6
MOST_ROWS = 18


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One prompt and seed as the original and the edited models draw it.

    Attributes:
        probe: Planned image.
        images: By column.
        seen: Whether the judge sees it, by column; None without a judge.
    """

    probe: PlannedImage
    images: tuple[Image.Image, ...]
    seen: tuple[bool | None, ...]


def headings(ledger: Ledger) -> list[str]:
    """Return the heading of the images after each standing removal."""
    return [f"{'+ ' if i else ''}{_targets(entry)} removed" for i, entry in enumerate(ledger.standing)]


@checks_arguments
class LedgerMeasures:
    """Measures and images of one ledger.

    Args:
        ledger: The ledger.
        pipe: Its unedited base model.
        settings: Settings of the measure; None measures nothing.
        on_progress: Receives the number of images as they are made.
    """

    def __init__(
        self,
        ledger: Ledger,
        pipe: DiffusionPipeline,
        settings: MeasureSettings | None,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.ledger, self.pipe, self.on_progress = ledger, pipe, on_progress
        self.settings = None if is_stored(pipe) else settings
        # Without a measure there are no images either; the defaults only keep the types simple.
        self.sampler = (settings or MeasureSettings()).sampling(ledger.base.name)
        if self.settings is not None:
            check_call(backbone_of(pipe), self.sampler.steps, self.sampler.height, self.sampler.width)

    @cached_property
    def skipped(self) -> str | None:
        """Reason for measuring nothing; None if the ledger is measured."""
        if is_stored(self.pipe):
            return "a model that stays on the disk makes no images (--low-memory)"
        if self.settings is None:
            return "not asked for (--no-measure)"
        if self.profile.judge() is None:
            return "no CLIP weights in the local cache to judge this model's images with"
        return None

    def measure(self, entry: Entry) -> dict[str, Any] | None:
        """Measure the model as it stands after an entry, and keep the result; None if nothing is measured.

        Of processes that work together the first alone has the result.

        Raises:
            InputError: The folder cannot be written.
        """
        judge = self._judge()
        if self.settings is None or judge is None:
            return None
        start = time.perf_counter()
        removed = self._removed(entry.id)
        plan = plan_of(self.profile, removed, self.settings)
        checks = checks_of(self.profile, removed, plan.probes) if self.settings.health else []
        pairs = list(dict.fromkeys([*plan.pairs, *((check.prompt, check.seed) for check in checks)]))
        before, after = (dict(zip(pairs, self._made(upto, pairs), strict=True)) for upto in (None, entry.id))
        if are_together() and not is_first():
            return None  # the images were shared out; the first judges them and keeps the result
        sides = ([images[pair] for pair in plan.pairs] for images in (before, after))
        checked = ([images[check.prompt, check.seed] for check in checks] for images in (before, after))
        kept = {
            **measure(plan.probes, judge, *sides, left_out=plan.left_out).as_json(),
            "health": health(checks, self.profile, judge, *checked) if checks else None,
            "state": self.ledger.state(entry.id),
            "measure_seconds": round(time.perf_counter() - start, 2),
            "pictures": len(pairs),
            "sampler": self.sampler.as_settings(),
        }
        write_whole(self._file(entry), (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
        return kept

    def measured(self, entry: Entry) -> dict[str, Any] | None:
        """Return the stored measure after an entry; None if the removals up to it have changed since."""
        return measured_of(self.ledger, entry)

    def course(self) -> Course:
        """Return the measures over the entries that stand."""
        return course_of(self.ledger)

    def columns(self) -> list[tuple[str, str | None]]:
        """Return headings and entry ids of the states to show: the original, then after each removal that stands."""
        states = [
            (heading, entry.id) for heading, entry in zip(headings(self.ledger), self.ledger.standing, strict=True)
        ]
        if len(states) >= MOST_COLUMNS:
            (heading, upto), *last = states[2 - MOST_COLUMNS :]
            states = [states[0], (f"… {heading}", upto), *last]
        return [("original", None), *states]

    def strips(self) -> list[Strip]:
        """Make the images of a report: the first of the measure for each concept, not chosen by their looks.

        Raises:
            InputError: The folder cannot be written.
        """
        if self.settings is None or not self.ledger.standing:
            return []
        probes = _showcase(plan_of(self.profile, self._removed(), self.settings).probes)
        pairs = pairs_of(probes)
        by_column = []
        for _, upto in self.columns():
            by_column.append(self._made(upto, pairs))
        seen = [self._seen(probes, images) for images in by_column]
        return [
            Strip(
                probe=probe,
                images=tuple(images[i] for images in by_column),
                seen=tuple(column[i] for column in seen),
            )
            for i, probe in enumerate(probes)
        ]

    def _seen(self, probes: Sequence[PlannedImage], images: Sequence[Image.Image]) -> list[bool | None]:
        judge = self._judge()
        if judge is None:
            return [None] * len(probes)
        return list(shows_each(judge, images, [probe.name for probe in probes]))

    def _made(self, upto: str | None, pairs: Sequence[tuple[str, int]]) -> list[Image.Image]:
        """Return images of the original (None) or of the model after a removal; those that are missing are made."""
        folder = ORIGINAL if upto is None else f"{upto}-{self.ledger.state(upto)}"
        store = ImageStore.of_state(self.ledger.path / "pictures", folder, pairs, self.sampler)
        if by_first(store.missing):
            what = "images of the original" if upto is None else f"images after {upto}"
            with nullcontext() if upto is None else self.ledger.applied_to(self.pipe, upto):
                fill(self.pipe, store, on_progress=staged(self.on_progress, what))
        return store.images()

    def _judge(self) -> Judge | None:
        if self.skipped is not None:
            return None
        removed = self._removed()
        names = [concept.target for concept in removed] + [name for c in removed for name in c.preserve]
        return self.profile.judge(str(backbone_of(self.pipe).device), names)

    def _removed(self, upto: str | None = None) -> list[Concept]:
        """Return the concepts removed up to an entry, or now; later removals may stand already."""
        return [concept for entry in self.ledger.standing_upto(upto) for concept in entry.concepts]

    @property
    def profile(self) -> ModelProfile:
        """Profile of the base model."""
        return profile_of(self.ledger.base.name)

    def _file(self, entry: Entry) -> Path:
        folder = self.ledger.path / "measures"
        make_folder(folder)
        return folder / f"{entry.id}.json"


class RateRecord(TypedDict):
    """A rate in a record."""

    value: float
    n: int
    interval: tuple[float, float]


class _Sampler(TypedDict):
    steps: int
    guidance_scale: float


class _RemovedRecord(TypedDict):
    efficacy: RateRecord
    before: RateRecord


class _Distance(TypedDict):
    value: float


class _Accuracy(TypedDict):
    before: float
    after: float


class _KeptRecord(TypedDict):
    retention: RateRecord | None
    distance: _Distance
    accuracy: NotRequired[Mapping[str, _Accuracy]]


class MeasureRecord(TypedDict):
    """Keys of a stored measure that tables and cards show."""

    state: str
    judge: str
    worst: str
    sampler: _Sampler
    removed: Mapping[str, _RemovedRecord]
    kept: Mapping[str, _KeptRecord]
    health: NotRequired[HealthRecord | None]


def measured_of(ledger: Ledger, entry: Entry) -> dict[str, Any] | None:
    """Return the stored measure after an entry.

    None if there is none, if its file is damaged, or if the removals up to it have changed since.
    """
    record = record_if_whole(ledger.path / "measures" / f"{entry.id}.json", MeasureRecord)
    return record if record is not None and record["state"] == ledger.state(entry.id) else None


@checks_arguments
def course_of(ledger: Ledger) -> Course:
    """Return the measures over the standing entries, from what was stored after each."""
    return Course.of([measured_of(ledger, entry) for entry in ledger.standing])


def health_lines(ledger: Ledger) -> list[str]:
    """Return lines on the health of a ledger: the damaged abilities by entry, then the course over the entries.

    A ledger that was not measured has none.
    """
    records = {entry.id: measured_of(ledger, entry) for entry in ledger.standing}
    lines = [
        f"health after {name}: damaged: {'; '.join(damaged)}"
        for name, record in records.items()
        if record is not None and record.get("health") and (damaged := damages(record["health"]))
    ]
    checked = [name for name, record in records.items() if record is not None and record.get("health")]
    if checked and not lines:
        lines = [f"health: no ability is damaged ({len(checked)} of {len(records)} entries checked)"]
    course = course_of(ledger).line
    return [*lines, f"over the entries: {course}"] if course else lines


def _showcase(probes: Sequence[PlannedImage]) -> list[PlannedImage]:
    """Return the first two probes of each removed concept and the first of each kept one, within a page's length."""
    taken: dict[str, int] = {}
    chosen: list[PlannedImage] = []
    for probe in probes:
        taken[probe.name] = taken.get(probe.name, 0) + 1
        if taken[probe.name] <= (2 if probe.role == "removed" else 1):
            chosen.append(probe)
    removed = [probe for probe in chosen if probe.role == "removed"]
    near, far = ([probe for probe in chosen if probe.role == role] for role in ("near", "far"))
    # The latest removals are what a reader came for; of the rest an even spread over the families.
    return [*removed[-MOST_ROWS // 2 :], *evenly(near, 5), *evenly(far, 6)]


def _targets(entry: Entry) -> str:
    return ", ".join(concept.target for concept in entry.concepts)
