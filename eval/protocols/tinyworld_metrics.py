"""The metrics that have a meaning on the tiny world: what its oracle sees, and what its judge makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from erasure.progress import OnProgress, ProgressCounter
from erasure.tinyworld.judge import WorldClip
from erasure.tinyworld.oracle import Oracle, Reading
from erasure.tinyworld.vocabulary import INDIVIDUALS

from ..benchmarks import Benchmark
from ..features.clip import TextTower, setup_of
from ..features.image_features import world_clip_features
from ..features.weights import oracle_name
from ..images.store import ImageStore
from ..metrics.caption_match import UNIT as CAPTION_UNIT
from ..metrics.caption_match import caption_setup, captions, text_match
from ..metrics.clip_score import UNIT as CLIP_UNIT
from ..metrics.clip_score import clip_score
from ..metrics.identity import DRAWINGS, Identity, identity_setup
from ..metrics.identity import UNIT as IDENTITY_UNIT
from ..metrics.oracle_distance import UNIT as DISTANCE_UNIT
from ..metrics.oracle_distance import oracle_distance
from ..stats.scores import Score, Setup, cosine_distances
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

Numbers = Float[np.ndarray, " n"]


@dataclass(kw_only=True)
class WorldReadings(Readings):
    """Readings of a variant's images by the oracle and the world's CLIP.

    Attributes:
        unwanted: Whether the removed concept that was asked for is seen.
        retained: Whether the concept that should stay is seen.
        probability: Probability of the removed concept, else of the kept one, according to the oracle.
        fit: CLIP score against the prompt.
        rest_fit: CLIP score against the prompt without what was removed.
        caption: Caption match.
        moved: Oracle distance to the original's image.
        judge_moved: Cosine distance of the judge's features to those of the original's image.
        identity: Likeness to the named individual that was asked for.
    """

    unwanted: Numbers
    retained: Numbers
    probability: Numbers
    fit: Numbers
    rest_fit: Numbers
    caption: Numbers
    moved: Numbers
    judge_moved: Numbers
    identity: Numbers


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Outputs of the networks for a batch of images, each computed once."""

    reading: Reading
    maps: list[Tensor]
    features: Tensor


@dataclass(kw_only=True)
class TinyWorldMetrics:
    """The metrics that have a meaning on the tiny world.

    Attributes:
        benchmark: Its items say what is asked for.
        oracle: Says what an image shows.
        judge: open_clip's CLIP, trained apart from the model and the oracle.
    """

    benchmark: Benchmark
    oracle: Oracle
    judge: WorldClip
    _sets: SetDistances | None = field(default=None, init=False, repr=False)
    _tower: TextTower = field(init=False, repr=False)
    _captions: TextTower = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tower, self._captions = TextTower(self.judge), TextTower(self.judge)

    @property
    def skipped(self) -> dict[str, str]:
        """Distances between sets, where there are too few images."""
        kept = len(kept_items(self.benchmark.items))
        if kept >= ENOUGH_FOR_SETS:
            return {}
        why = f"{kept} images of what should stay; below {ENOUGH_FOR_SETS:,} the paired feature distance stands alone"
        return {"fd, kid": why}

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._tower.warnings

    @property
    def wants_reference(self) -> bool:
        return not self.skipped

    def prepare(self, reference: ImageStore) -> None:
        self._sets = SetDistances(world_clip_features(self.judge), OTHER_SEEDS, ("fd", "kid"))
        self._sets.read_reference(reference)

    def measure(self, stores: Mapping[str, ImageStore], on_progress: OnProgress | None) -> dict[str, Measures]:
        items = self.benchmark.items
        readings = {name: WorldReadings.none(len(items)) for name in stores}
        sets = {} if self._sets is None else {name: self._sets.row() for name in stores}
        count = ProgressCounter(on_progress, len(items) * len(stores), "reading")
        for here, batch in side_by_side(stores):
            before = self._read(batch[ORIGINAL])
            stay = [not item.unwanted for item in items[here]]
            for name, images in batch.items():
                outputs = before if name == ORIGINAL else self._read(images)
                self._fill(readings[name], here, outputs, before)
                if name in sets:
                    sets[name].update_features(outputs.features[stay])
                count.add(len(images))
        distances = {} if self._sets is None else {name: self._sets.scores(row) for name, row in sets.items()}
        return {
            name: self._measures(values, readings[ORIGINAL], distances.get(name, {}))
            for name, values in readings.items()
        }

    @torch.no_grad()
    def _read(self, images: list[Image]) -> _Batch:
        reading, maps = self.oracle.read_with_maps(images)
        return _Batch(reading=reading, maps=maps, features=self.judge.image_features(images))

    def _fill(self, readings: WorldReadings, here: slice, outputs: _Batch, before: _Batch) -> None:
        """Read the images of some items, and keep the numbers."""
        items = self.benchmark.items[here]
        readings.unwanted[here] = _of_each(outputs.reading.sees, [item.unwanted for item in items])
        readings.retained[here] = _of_each(outputs.reading.sees, [item.retained for item in items])
        readings.probability[here] = _of_each(
            outputs.reading.probability, [item.unwanted or item.retained for item in items]
        )
        prompts = self._tower.features([item.prompt for item in items])
        readings.fit[here] = clip_score(outputs.features, prompts).numpy()
        if said := [row for row, item in enumerate(items) if item.rest]:
            rests = self._tower.features([items[row].rest for row in said])
            readings.rest_fit[[here.start + row for row in said]] = clip_score(outputs.features[said], rests).numpy()
        # Captions are no texts of the benchmark: how long they are is no matter of its prompts.
        readings.caption[here] = text_match(self._captions.features(captions(outputs.reading)), prompts).numpy()
        readings.moved[here] = oracle_distance(before.maps, outputs.maps).cpu().numpy()
        readings.judge_moved[here] = cosine_distances(before.features.numpy(), outputs.features.numpy())
        for row, item in enumerate(items):
            if (individual := self._individuals.get(item.unwanted or item.retained)) is not None:
                readings.identity[here.start + row] = individual.of(outputs.reading.features[row : row + 1])[0]

    def _measures(self, readings: WorldReadings, before: WorldReadings, sets: Mapping[str, Score]) -> Measures:
        items = self.benchmark.items
        kept, removed = kept_items(items), removed_items(items)
        columns = efficacy_by_wording(items, readings.unwanted, self._share, self.benchmark.held_out)
        stays = chosen(np.arange(len(items)), lambda i: bool(items[i].retained))
        for tier in dict.fromkeys(items[i].group for i in stays):
            rows = chosen(stays, lambda i, t=tier: items[i].group == t)
            named = tier.replace(" ", "_").replace("-", "_")
            held = rows[before.retained[rows] == 1]
            columns[f"retention_{named}"] = self._share("retention", held, readings.retained[held])
            columns[f"shown_{named}"] = self._share("shown", rows, readings.retained[rows])
        both = chosen(removed, lambda i: bool(items[i].retained))
        columns["joint"] = self._share(
            "joint", both, (readings.unwanted[both] == 0) * (readings.retained[both] == 1) * 1.0
        )
        rest = chosen(removed, lambda i: bool(items[i].rest))

        def asks(row: int) -> bool:
            return (items[row].unwanted or items[row].retained) in self._individuals

        for name, rows, values, unit, higher in (
            ("clip_score", kept, readings.fit, CLIP_UNIT, True),
            ("clip_score_removed", removed, readings.fit, CLIP_UNIT, False),
            ("clip_score_rest", rest, readings.rest_fit, CLIP_UNIT, True),
            ("caption_match", kept, readings.caption, CAPTION_UNIT, True),
            ("oracle_distance", kept, readings.moved, DISTANCE_UNIT, False),
            ("judge_distance", kept, readings.judge_moved, "cosine distance", False),
            ("identity", chosen(kept, asks), readings.identity, IDENTITY_UNIT, True),
            ("identity_removed", chosen(removed, asks), readings.identity, IDENTITY_UNIT, False),
        ):
            columns[name] = self._column(name, rows, values[rows], unit, higher)
        return Measures(
            columns=columns,
            sets=sets,
            concepts=concept_scores(items, readings.unwanted, readings.retained, before.retained, self._share),
            seen=np.where(np.isnan(readings.unwanted), readings.retained, readings.unwanted),
            probability=readings.probability,
        )

    def _share(self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"]) -> Column:
        return self._column(metric, rows, values, "share", True)

    def _column(
        self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], unit: str, higher: bool
    ) -> Column:
        read_by = self._setups.get(metric, self._setups["oracle"])
        against = SAME_SEEDS if metric in ("retention", "oracle_distance", "judge_distance") else ""
        setup = replace(read_by, metric=metric, reference=read_by.reference or against)
        return Column(items=rows, values=values, unit=unit, higher_is_better=higher, setup=setup)

    @cached_property
    def _individuals(self) -> dict[str, Identity]:
        """Identity metric of each individual that a prompt names."""
        prompted = {item.unwanted or item.retained for item in self.benchmark.items}
        return {name: Identity(oracle=self.oracle, individual=name) for name in INDIVIDUALS if name in prompted}

    @cached_property
    def _setups(self) -> dict[str, Setup]:
        """The protocol of the metrics that the oracle does not read alone, and under its name that of all others."""
        judge = setup_of(self.judge, "judge")
        return {
            "oracle": Setup(metric="oracle", backbone=oracle_name(self.oracle)),
            "caption_match": caption_setup(self.oracle, self.judge),
            **dict.fromkeys(
                ("identity", "identity_removed"),
                identity_setup(self.oracle, f"{DRAWINGS} drawings of each individual, less as many of its class"),
            ),
            **dict.fromkeys(("clip_score", "clip_score_removed", "clip_score_rest", "judge_distance"), judge),
        }


def _of_each(read: Callable[[str], np.ndarray], names: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Return the reading of each image for its own name; NaN without a name."""
    outputs = {name: read(name) for name in set(names) if name}
    return np.array([float(outputs[name][row]) if name else np.nan for row, name in enumerate(names)])
