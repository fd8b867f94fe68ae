"""The metrics that have a meaning on the tiny world: what its oracle sees, and what its judge makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image

from erasure.tinyworld.judge import Judge
from erasure.tinyworld.oracle import Oracle

from .benchmarks import Benchmark, Item
from .measures import (
    BATCH,
    ENOUGH_FOR_SETS,
    OTHER_SEEDS,
    SAME_SEEDS,
    Column,
    Measures,
    SetDistances,
    chosen,
    concept_scores,
    efficacy_by_wording,
    kept_items,
    removed_items,
)
from .metrics.caption_match import UNIT as CAPTION_UNIT
from .metrics.caption_match import CaptionMatch, caption_setup
from .metrics.clip import TextTower, setup_of
from .metrics.clip_score import UNIT as CLIP_UNIT
from .metrics.clip_score import clip_score
from .metrics.features import judge_features
from .metrics.oracle_distance import UNIT as DISTANCE_UNIT
from .metrics.oracle_distance import OracleDistance
from .metrics.weights import oracle_name
from .scores import Setup, cosine_distances
from .store import ImageStore


@dataclass(kw_only=True)
class TinyWorldMetrics:
    """The metrics that have a meaning on the tiny world.

    Attributes:
        benchmark: Its items say what is asked for.
        oracle: Says what a picture shows.
        judge: open_clip's CLIP, trained apart from the model and the oracle.
    """

    benchmark: Benchmark
    oracle: Oracle
    judge: Judge
    _sets: SetDistances | None = field(default=None, init=False, repr=False)
    _tower: TextTower = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tower = TextTower(self.judge)

    @property
    def skipped(self) -> dict[str, str]:
        """Distances between sets, where there are too few pictures."""
        kept = len(kept_items(self.benchmark.items))
        if kept >= ENOUGH_FOR_SETS:
            return {}
        why = f"{kept} pictures of what should stay; below {ENOUGH_FOR_SETS:,} the paired feature distance stands alone"
        return {"fd, kid": why}

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._tower.warnings

    @property
    def wants_reference(self) -> bool:
        return not self.skipped

    def prepare(self, reference: ImageStore) -> None:
        self._sets = SetDistances(judge_features(self.judge), OTHER_SEEDS, ("fd", "kid"))
        for images in reference.batches(BATCH):
            self._sets.reference.append(self.judge.image_features(images).numpy())

    def measure(self, store: ImageStore, original: ImageStore, on_picture: Callable[[int], None]) -> Measures:
        items = self.benchmark.items
        captions = CaptionMatch(oracle=self.oracle, judge=self.judge)
        distance = OracleDistance(oracle=self.oracle)
        unwanted, wanted = (np.full(len(items), np.nan) for _ in range(2))
        seen_before = np.full(len(items), np.nan)
        features: list[np.ndarray] = []
        paired: list[np.ndarray] = []
        start = 0
        for images, before in zip(store.batches(BATCH), original.batches(BATCH), strict=True):
            part = items[start : start + len(images)]
            here = slice(start, start + len(images))
            unwanted[here], wanted[here] = self._sees(images, part)
            seen_before[here] = self._sees(before, part)[1]
            captions.update(images, [item.prompt for item in part])
            distance.update(before, images)
            features.append(self.judge.image_features(images).numpy())
            paired.append(cosine_distances(self.judge.image_features(before).numpy(), features[-1]))
            start += len(images)
            on_picture(len(images))
        seen = np.where(np.isnan(unwanted), wanted, unwanted)
        return self._measures(
            items,
            unwanted,
            wanted,
            seen_before,
            {
                "caption_match": (np.array(captions.compute().per_image), CAPTION_UNIT, True),
                "oracle_distance": (np.array(distance.compute().per_image), DISTANCE_UNIT, False),
                "judge_distance": (np.concatenate(paired), "cosine distance", False),
            },
            np.concatenate(features),
            seen,
        )

    def _measures(
        self,
        items: Sequence[Item],
        unwanted: Float[np.ndarray, " n"],
        wanted: Float[np.ndarray, " n"],
        seen_before: Float[np.ndarray, " n"],
        values: Mapping[str, tuple[Float[np.ndarray, " n"], str, bool]],
        features: Float[np.ndarray, "n dim"],
        seen: Float[np.ndarray, " n"],
    ) -> Measures:
        kept, removed = kept_items(items), removed_items(items)
        columns = efficacy_by_wording(items, unwanted, self._share)
        stays = chosen(np.arange(len(items)), lambda i: bool(items[i].wanted))
        for tier in dict.fromkeys(items[i].group for i in stays):
            rows = chosen(stays, lambda i, t=tier: items[i].group == t)
            named = tier.replace(" ", "_").replace("-", "_")
            held = rows[seen_before[rows] == 1]
            columns[f"retention_{named}"] = self._share("retention", held, wanted[held])
            columns[f"shown_{named}"] = self._share("shown", rows, wanted[rows])
        both = chosen(removed, lambda i: bool(items[i].wanted))
        columns["joint"] = self._share("joint", both, (unwanted[both] == 0) * (wanted[both] == 1) * 1.0)
        rest = chosen(removed, lambda i: bool(items[i].rest))
        for name, rows, texts in (
            ("clip_score", kept, [items[i].prompt for i in kept]),
            ("clip_score_removed", removed, [items[i].prompt for i in removed]),
            ("clip_score_rest", rest, [items[i].rest for i in rest]),
        ):
            if len(rows):
                score = clip_score(torch.from_numpy(features[rows]), self._tower.features(texts)).numpy()
                columns[name] = self._column(name, rows, score, CLIP_UNIT, name != "clip_score_removed")
        for name, (each, unit, higher) in values.items():
            columns[name] = self._column(name, kept, each[kept], unit, higher)
        sets = {} if self._sets is None else self._sets.scores(features[kept])
        concepts = concept_scores(items, unwanted, wanted, seen_before, self._share)
        return Measures(columns=columns, sets=sets, concepts=concepts, seen=seen)

    def _sees(
        self, images: Sequence[Image], items: Sequence[Item]
    ) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return whether each picture shows its item's unwanted and its wanted concept, NaN where there is none."""
        reading = self.oracle.read(images)
        names = {name for item in items for name in (item.unwanted, item.wanted) if name}
        seen = {name: reading.sees(name) for name in names}
        unwanted = [float(seen[item.unwanted][i]) if item.unwanted else np.nan for i, item in enumerate(items)]
        wanted = [float(seen[item.wanted][i]) if item.wanted else np.nan for i, item in enumerate(items)]
        return np.array(unwanted), np.array(wanted)

    def _share(self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"]) -> Column:
        return self._column(metric, rows, values, "share", True)

    def _column(
        self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], unit: str, higher: bool
    ) -> Column:
        read_by = self._setups.get(metric, self._setups["oracle"])
        against = SAME_SEEDS if metric in ("retention", "oracle_distance", "judge_distance") else ""
        setup = replace(read_by, metric=metric, reference=against)
        return Column(items=rows, values=values, unit=unit, higher_is_better=higher, setup=setup)

    @cached_property
    def _setups(self) -> dict[str, Setup]:
        """The protocol of the metrics that the oracle does not read alone, and under its name that of all others."""
        judge = setup_of(self.judge, "judge")
        return {
            "oracle": Setup(metric="oracle", backbone=oracle_name(self.oracle)),
            "caption_match": caption_setup(self.oracle, self.judge),
            **dict.fromkeys(("clip_score", "clip_score_removed", "clip_score_rest", "judge_distance"), judge),
        }
