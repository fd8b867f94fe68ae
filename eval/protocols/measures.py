"""Measures of a variant: metrics with a value an image, metrics of whole sets, and a rate for each concept."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from PIL.Image import Image

from erasure.progress import OnProgress

from ..benchmarks import Benchmark, Item
from ..features.image_features import Extractor
from ..images.manifest import Manifest
from ..images.store import ImageStore
from ..metrics.fid import Fid, FidScore
from ..stats.scores import LeastShare, Score, Setup

ENOUGH_FOR_SETS = 1_000
"""Images below which no distance between sets is computed: there are paired distances instead."""
BATCH = 64
"""Images that are read together."""
SAME_SEEDS = "the original model, same prompts and seeds"
OTHER_SEEDS = "the original model, same prompts, other seeds"
"""Description of the reference images, in protocols."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value each for some of the images.

    Attributes:
        items: Indices (k,) of the benchmark's items that have a value.
        values: The values (k,); 0 and 1 for a share.
        unit: "share" makes the score a rate with a Wilson interval.
        higher_is_better: The direction.
        setup: The protocol.
    """

    items: Int[np.ndarray, " k"]
    values: Float[np.ndarray, " k"]
    unit: str
    higher_is_better: bool
    setup: Setup

    @property
    def score(self) -> Score:
        """The mean, with its interval."""
        facts = {"unit": self.unit, "higher_is_better": self.higher_is_better, "setup": self.setup}
        if self.unit == "share":
            return Score.share(self.values.astype(bool), **facts)
        return Score.mean(self.values, **facts)


AnyReadings = TypeVar("AnyReadings", bound="Readings")


@dataclass(kw_only=True)
class Readings:
    """Readings of a variant's images: fields with one number an image; NaN if nothing was read."""

    @classmethod
    def none(cls: type[AnyReadings], n: int) -> AnyReadings:
        """Return the readings of n images that were not read yet."""
        return cls(**{item.name: np.full(n, np.nan) for item in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All that was measured of one row.

    Attributes:
        columns: Metrics with a value an image, by name.
        sets: Metrics of all images together, by name.
        concepts: Efficacy or retention of each concept by name.
        seen: Whether the concept of each item was seen; NaN if not read.
        probability: Probability of the concept according to the reader, in [0, 1]; NaN if not read.
    """

    columns: Mapping[str, Column]
    sets: Mapping[str, Score]
    concepts: Mapping[str, Score]
    seen: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]

    @property
    def scores(self) -> dict[str, Score]:
        """Every metric by name; "efficacy" is that of the removed concept of which most is left."""
        scores = {name: column.score for name, column in self.columns.items() if len(column.items)}
        efficacies = {name: score for name, score in self.concepts.items() if is_efficacy(score)}
        setups = [score.setup for score in efficacies.values() if score.setup]
        worst = {"efficacy": LeastShare.of(efficacies, setups[0])} if setups else {}
        return {**worst, **scores, **self.sets}

    @property
    def warnings(self) -> list[str]:
        """Limits on comparing single scores."""
        distances = {name: score for name, score in self.sets.items() if isinstance(score, FidScore)}
        return [
            *(f"{name}: {score.warning}" for name, score in distances.items() if score.warning),
            *(f"{name}: no interval: {score.no_interval}" for name, score in distances.items() if score.no_interval),
        ]

    @property
    def unpaired(self) -> dict[str, str]:
        """Scores of how much is gone that have none of what stayed beside them, with the reason.

        They are not to be shown: a model that draws nothing any more has the best of them.
        """
        scores = self.scores
        kept = any(name.startswith(("retention", "shown")) for name in scores)
        why = "no image of what should stay could be judged beside it"
        unpaired_scores = {} if kept else {name: why for name in scores if name.startswith("efficacy")}
        if "clip_score" not in scores and "clip_score_removed" in scores:
            unpaired_scores["clip_score_removed"] = why
        return unpaired_scores

    def without(self, names: Collection[str]) -> "Measures":
        """Return the same without some scores; without "efficacy", without that of each concept as well."""
        concepts = {
            name: score for name, score in self.concepts.items() if "efficacy" not in names or not is_efficacy(score)
        }
        columns = {name: column for name, column in self.columns.items() if name not in names}
        return replace(self, columns=columns, concepts=concepts)

    def of_images(self, benchmark: Benchmark, manifest: Manifest, original: str) -> "Measures":
        """Return the same with what made the images in every protocol.

        Args:
            benchmark: Benchmark of the images.
            manifest: Manifest of the images.
            original: Digest of the original, for the scores that compare with its images.
        """
        sampled_with = {
            "benchmark": benchmark.id,
            "sampler": manifest.scheduler["name"],
            "steps": manifest.steps,
            "guidance_scale": manifest.guidance_scale,
            "precision": manifest.precision,
        }

        def whole(setup: Setup) -> Setup:
            compares = setup.reference in (SAME_SEEDS, OTHER_SEEDS)
            return replace(setup, **sampled_with, original=original if compares else "")

        def stamped(scores: Mapping[str, Score]) -> dict[str, Score]:
            return {name: replace(score, setup=score.setup and whole(score.setup)) for name, score in scores.items()}

        columns = {name: replace(column, setup=whole(column.setup)) for name, column in self.columns.items()}
        return replace(self, columns=columns, sets=stamped(self.sets), concepts=stamped(self.concepts))


def is_efficacy(score: Score) -> bool:
    """Return True if a score is an efficacy; a classifier has its own form of it ("efficacy_top1")."""
    return score.setup is not None and score.setup.metric.startswith("efficacy")


@runtime_checkable
class Metrics(Protocol):
    """Metrics of one benchmark."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Metrics that are not computed, with the reason."""
        ...

    @property
    def warnings(self) -> Sequence[str]:
        """Limits on comparing the numbers with others, for everything measured so far."""
        ...

    @property
    def wants_reference(self) -> bool:
        """Whether there are distances between sets, which need the original's images under other seeds."""
        ...

    def prepare(self, reference: ImageStore) -> None:
        """Read the reference images, if `wants_reference` is true."""
        ...

    def measure(self, stores: Mapping[str, ImageStore], on_progress: OnProgress | None) -> dict[str, Measures]:
        """Measure all rows, the original's among them, of which the others are of the same prompts and seeds.

        They are read side by side, so that what is compared with the original's images needs them once, and nothing
        is kept but numbers.
        """
        ...


@dataclass
class SetDistances:
    """Distances between sets of images.

    Attributes:
        extractor: Feature extractor.
        against: Description of the reference images.
        names: Names of the Fréchet and the kernel distance over these features.
    """

    extractor: Extractor
    against: str
    names: tuple[str, str]
    _reference: Fid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._reference = Fid(extractor=self.extractor, reference=self.against)

    def read_reference(self, reference: ImageStore) -> None:
        """Read the images that all rows are compared with."""
        for images in reference.batches(BATCH):
            self._reference.update_reference(images)

    def row(self) -> Fid:
        """Return a streaming distance for one variant; beyond 5,000 images its memory does not grow."""
        return self._reference.again()

    def scores(self, distance: Fid) -> dict[str, Score]:
        """Return both distances of a row."""
        frechet = distance.compute()
        kernel = frechet.kid or distance.compute_kid()
        return {
            name: replace(score, setup=self.extractor.setup(name, reference=self.against))
            for name, score in zip(self.names, (replace(frechet, kid=None), kernel), strict=True)
        }


def kept_items(items: Sequence[Item]) -> Int[np.ndarray, " k"]:
    """Return the items that ask for nothing removed."""
    return np.array([i for i, item in enumerate(items) if not item.unwanted], dtype=np.int64)


def removed_items(items: Sequence[Item]) -> Int[np.ndarray, " k"]:
    """Return the items that ask for something removed."""
    return np.array([i for i, item in enumerate(items) if item.unwanted], dtype=np.int64)


def side_by_side(stores: Mapping[str, ImageStore]) -> Iterator[tuple[slice, dict[str, list[Image]]]]:
    """Give the images of all rows a batch at a time, with the items that they are of."""
    start = 0
    for batches in zip(*(store.batches(BATCH) for store in stores.values()), strict=True):
        yield slice(start, start + len(batches[0])), dict(zip(stores, batches, strict=True))
        start += len(batches[0])


def efficacy_by_wording(
    items: Sequence[Item],
    unwanted: Float[np.ndarray, " n"],
    share: Callable[[str, Int[np.ndarray, " k"], Float[np.ndarray, " k"]], Column],
    held_out: Callable[[Item], bool],
) -> dict[str, Column]:
    """Return the efficacy over all removed concepts, a column for each wording of the prompts.

    One more is for what is asked in held-out phrasings, in any of the wordings.

    Args:
        items: Items of the benchmark.
        unwanted: Whether each item's removed concept was seen; NaN if not read.
        share: Makes the column of a metric from rows and their values.
        held_out: Tells the items in held-out phrasings.
    """
    looked = chosen(removed_items(items), lambda i: not np.isnan(unwanted[i]))
    parts = {
        wording: chosen(looked, lambda i, w=wording: items[i].wording == w)
        for wording in dict.fromkeys(items[i].wording for i in looked)
    }
    parts["held_out"] = chosen(looked, lambda i: held_out(items[i]))
    return {
        f"efficacy_{part}": share("efficacy", rows, 1 - unwanted[rows]) for part, rows in parts.items() if len(rows)
    }


def concept_scores(
    items: Sequence[Item],
    unwanted: Float[np.ndarray, " n"],
    retained: Float[np.ndarray, " n"],
    before: Float[np.ndarray, " n"],
    share: Callable[[str, Int[np.ndarray, " k"], Float[np.ndarray, " k"]], Column],
) -> dict[str, Score]:
    """Return the efficacy of each removed and the retention of each kept concept of which there is an image.

    Args:
        items: Items of the benchmark.
        unwanted: Whether each item's removed concept was seen; NaN if not read.
        retained: Whether each item's kept concept was seen; NaN if not read.
        before: Whether the original's image shows the kept concept.
        share: Makes the column of a metric from rows and their values.
    """
    scores: dict[str, Score] = {}
    removed, kept = removed_items(items), kept_items(items)
    for name in dict.fromkeys(items[i].unwanted for i in removed):
        rows = chosen(removed, lambda i, n=name: items[i].unwanted == n and not np.isnan(unwanted[i]))
        if len(rows):
            scores[name] = share("efficacy", rows, 1 - unwanted[rows]).score
    for name in dict.fromkeys(items[i].retained for i in kept if items[i].retained):
        rows = chosen(kept, lambda i, n=name: items[i].retained == n and before[i] == 1 and not np.isnan(retained[i]))
        if len(rows):
            scores[name] = share("retention", rows, retained[rows]).score
    return scores


def chosen(rows: Int[np.ndarray, " k"], which: Callable[[int], bool]) -> Int[np.ndarray, " j"]:
    """Return the rows of which something holds."""
    return np.array([i for i in rows.tolist() if which(i)], dtype=np.int64)
