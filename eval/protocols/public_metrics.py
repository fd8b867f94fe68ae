"""The metrics of benchmarks for real models, as far as their weights are in the local cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from PIL.Image import Image

from erasure.errors import ErasureError, InputError
from erasure.judge import Clip, probability_each, shows_each
from erasure.progress import OnProgress, ProgressCounter
from erasure.prompts import without_phrases

from ..benchmarks import Benchmark, Item
from ..features.clip import OpenClip, TextTower, setup_of
from ..features.image_features import Extractor, extractor
from ..images.store import ImageStore
from ..metrics.accuracy import Classifier, check_classes, hub_classifier, resnet50
from ..metrics.clip_score import UNIT, clip_score
from ..stats.scores import Score, Setup
from .measures import (
    ENOUGH_FOR_SETS,
    OTHER_SEEDS,
    SAME_SEEDS,
    Column,
    Measures,
    Readings,
    SetDistances,
    chosen,
    concept_scores,
    efficacy_by_wording,
    kept_items,
    removed_items,
    side_by_side,
)
from .variants import ORIGINAL

CLASSIFIERS: Final[Mapping[str, Callable[..., Classifier]]] = MappingProxyType({"resnet50": resnet50})
"""Classifiers that a benchmark may name."""


@dataclass(kw_only=True)
class PublicReadings(Readings):
    """Readings of a variant's images by CLIP and a classifier.

    Attributes:
        fit: CLIP score against the prompt.
        rest_fit: CLIP score against the prompt without what was removed.
        seen: Whether the classifier takes it for the class that was asked for.
        probability: Probability of the class.
    """

    fit: Float[np.ndarray, " n"]
    rest_fit: Float[np.ndarray, " n"]
    seen: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]


@dataclass(kw_only=True)
class PublicMetrics:
    """CLIP score, accuracy by class index, and distances between sets.

    Attributes:
        benchmark: Its items say what is asked for.
        clip: Judge of CLIP score; None skips it.
        classifier: For items that have a class index, with the benchmark's classes; None skips them.
        features: For FID and KID; None skips them.
        skipped: Metrics that are not computed, with the reason.

    Raises:
        InputError: The classifier has other classes than the benchmark.
    """

    benchmark: Benchmark
    clip: Clip | None
    classifier: Classifier | None
    features: Extractor | None
    skipped: dict[str, str] = field(default_factory=dict)
    _sets: SetDistances | None = field(default=None, init=False, repr=False)
    _tower: TextTower | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.classifier is not None:
            check_classes(self.classifier, self.benchmark.classes, self.benchmark.name)
        self._tower = None if self.clip is None else TextTower(self.clip)

    @classmethod
    def available(cls, benchmark: Benchmark, *, device: str = "cpu", classifier: str | None = None) -> "PublicMetrics":
        """Return the metrics whose weights are in the local cache; nothing is downloaded.

        Args:
            benchmark: Benchmark of the images.
            device: Device of the metrics.
            classifier: An image classifier of the Hub with the benchmark's classes; None is the benchmark's own.

        Raises:
            InputError: A classifier for a benchmark without classes, or one with others; or nothing can be measured.
            MissingWeightsError: The classifier that is asked for is not in the local cache.
        """
        if classifier is not None and not benchmark.classes:
            raise InputError(
                f"--classifier: expected none for {benchmark.name}, got {classifier!r}. It has no classes."
            )
        skipped: dict[str, str] = {}

        def loaded(name: str, load: Callable[[], Any]) -> Any:
            try:
                return load()
            except ErasureError as error:
                skipped[name] = str(error)
                return None

        if not benchmark.classes:
            skipped["efficacy, retention"] = "this list names no classes that a classifier knows"
        elif classifier is None and not benchmark.classifier:
            skipped["efficacy, retention"] = (
                f"no classifier has the classes of {benchmark.name} by default; name one of the Hub: --classifier"
            )
        for name in benchmark.unasked:
            skipped[f"efficacy of {name}"] = f"no prompt of {benchmark.name} asks for it"
        kept = len(kept_items(benchmark.items))
        if kept < ENOUGH_FOR_SETS:
            skipped["fid, kid"] = f"{kept} images of what should stay, below {ENOUGH_FOR_SETS:,}"
        metrics = cls(
            benchmark=benchmark,
            clip=loaded("clip_score", lambda: OpenClip.load(device=device)),
            classifier=hub_classifier(classifier, device=device)
            if classifier is not None
            else loaded("efficacy, retention", lambda: CLASSIFIERS[benchmark.classifier](device=device))
            if benchmark.classifier
            else None,
            features=loaded("fid, kid", lambda: extractor("inception", device=device))
            if kept >= ENOUGH_FOR_SETS
            else None,
            skipped=skipped,
        )
        if metrics.clip is None and metrics.features is None and (metrics.classifier is None or not kept):
            if metrics.classifier is not None:
                skipped["efficacy"] = "no prompt asks for what should stay, and it is not shown alone"
            why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"evaluate: expected something to judge {benchmark.name} by, got nothing. {why}")
        return metrics

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about truncated texts."""
        return () if self._tower is None else self._tower.warnings

    @cached_property
    def _rests(self) -> tuple[str, ...]:
        """Prompt of each item without the removed concepts; "" if no other word is left, or none was removed."""
        names = [*dict.fromkeys(item.unwanted for item in self.benchmark.items if item.unwanted)]
        return tuple(item.rest or _rest(item, [*names, *self.benchmark.unasked]) for item in self.benchmark.items)

    @property
    def wants_reference(self) -> bool:
        """Whether there are distances between sets, which need the original's images under other seeds."""
        return self.features is not None

    def prepare(self, reference: ImageStore) -> None:
        """Read the reference images, if `wants_reference` is true."""
        if self.features is not None:
            self._sets = SetDistances(self.features, OTHER_SEEDS, ("fid", "kid"))
            self._sets.read_reference(reference)

    def measure(self, stores: Mapping[str, ImageStore], on_progress: OnProgress | None) -> dict[str, Measures]:
        """Measure all rows, the original's among them, side by side; nothing is kept but numbers."""
        items = self.benchmark.items
        readings = {name: PublicReadings.none(len(items)) for name in stores}
        sets = {} if self._sets is None else {name: self._sets.row() for name in stores}
        count = ProgressCounter(on_progress, len(items) * len(stores), "reading")
        for here, batch in side_by_side(stores):
            for name, images in batch.items():
                self._fill(readings[name], here, images)
                stay = [image for image, item in zip(images, items[here], strict=True) if not item.unwanted]
                if name in sets and stay:
                    sets[name].update(stay)
                count.add(len(images))
        distances = {} if self._sets is None else {name: self._sets.scores(row) for name, row in sets.items()}
        return {
            name: self._measures(values, readings[ORIGINAL], distances.get(name, {}))
            for name, values in readings.items()
        }

    def _fill(self, readings: PublicReadings, here: slice, images: list[Image]) -> None:
        """Read the images of some items, and keep the numbers."""
        items = self.benchmark.items[here]
        if self._tower is not None:
            features = self._tower.clip.image_features(images)
            readings.fit[here] = clip_score(features, self._tower.features([item.prompt for item in items])).numpy()
            if said := [row for row in range(len(images)) if self._rests[here.start + row]]:
                texts = self._tower.features([self._rests[here.start + row] for row in said])
                readings.rest_fit[[here.start + row for row in said]] = clip_score(features[said], texts).numpy()
        indices = {row: item.class_index for row, item in enumerate(items) if item.class_index is not None}
        if self.classifier is not None and indices:
            class_images = [images[row] for row in indices]
            names = [self.classifier.classes[index] for index in indices.values()]
            rows = [here.start + row for row in indices]
            readings.seen[rows] = shows_each(self.classifier, class_images, names)
            readings.probability[rows] = probability_each(self.classifier, class_images, names)

    def _measures(self, readings: PublicReadings, before: PublicReadings, sets: Mapping[str, Score]) -> Measures:
        items = self.benchmark.items
        kept, removed = kept_items(items), removed_items(items)
        columns: dict[str, Column] = {}
        if self.clip is not None:
            said = chosen(removed, lambda i: bool(self._rests[i]))
            for name, rows, values in (
                ("clip_score", kept, readings.fit),
                ("clip_score_removed", removed, readings.fit),
                ("clip_score_rest", said, readings.rest_fit),
            ):
                columns[name] = self._column(name, rows, values[rows], UNIT, name != "clip_score_removed")
        concepts: dict[str, Score] = {}
        if self.classifier is not None:
            columns |= efficacy_by_wording(items, readings.seen, self._share, self.benchmark.held_out)
            columns |= self._retained(kept, readings.seen, before.seen)
            concepts = concept_scores(items, readings.seen, readings.seen, before.seen, self._share)
        return Measures(
            columns=columns, sets=sets, concepts=concepts, seen=readings.seen, probability=readings.probability
        )

    def _retained(
        self, kept: Int[np.ndarray, " k"], seen: Float[np.ndarray, " n"], before: Float[np.ndarray, " n"]
    ) -> dict[str, Column]:
        stay = chosen(kept, lambda i: not np.isnan(seen[i]))
        held = chosen(stay, lambda i: before[i] == 1)
        return {
            "shown": self._share("shown", stay, seen[stay]),
            "retention": self._share("retention", held, seen[held]),
        }

    def _share(self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"]) -> Column:
        return self._column(metric, rows, values, "share", True)

    def _column(
        self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], unit: str, higher: bool
    ) -> Column:
        if metric.startswith("clip") and self.clip is not None:
            setup = setup_of(self.clip, metric)
        elif self.classifier is not None:
            reference = SAME_SEEDS if metric == "retention" else ""
            setup = replace(self.classifier.setup(metric), reference=reference)
        else:
            setup = Setup(metric=metric)
        return Column(items=rows, values=values, unit=unit, higher_is_better=higher, setup=setup)


def _rest(item: Item, names: Sequence[str]) -> str:
    """Return a prompt without the names of what was removed; "" if it names none of it."""
    text = without_phrases(item.prompt, names) if item.unwanted else ""
    return "" if text == item.prompt else text
