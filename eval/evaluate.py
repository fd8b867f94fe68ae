"""Evaluate a model on a benchmark: the pictures of each row, the metrics over them, and what differs from the original.

On the tiny world the oracle and the judge read the pictures. On other models what is computed depends on the weights
in the local cache, and what is not computed is listed with the reason.
"""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image

from erasure.errors import InputError
from erasure.files import make_folder, write_whole
from erasure.runs import commit, versions
from erasure.tinyworld.judge import Judge
from erasure.tinyworld.oracle import Oracle

from .benchmarks import Benchmark, Item
from .metrics.attention_drift import AttentionDrift, Beside
from .metrics.caption_match import UNIT as CAPTION_UNIT
from .metrics.caption_match import CaptionMatch
from .metrics.clip_score import UNIT as CLIP_UNIT
from .metrics.clip_score import clip_score
from .metrics.features import Extractor, extractor
from .metrics.fid import Fid
from .metrics.kid import Kid
from .metrics.oracle_distance import UNIT as DISTANCE_UNIT
from .metrics.oracle_distance import OracleDistance
from .pictures import Pair, Sampler
from .rows import ERASED, ORIGINAL, Row
from .scores import Score, Setup, cosine_distances, shared_setup
from .statistics import mcnemar, paired_bootstrap
from .store import ImageStore, Manifest, check_paired

FORMAT = "erasure-scores/1"
ENOUGH_FOR_SETS = 1_000
"""Pictures below which no distance between sets is computed: there are paired distances instead."""
BATCH = 64
DRIFT_PROMPTS = 24
"""Prompts that name something removed and something beside it whose attention maps are followed, at most."""
OTHER_SEEDS = 2**30
"""Added to each seed for the pictures of the original that sets of pictures are compared with."""

OnPicture = Callable[[str, int, int], None]
"""Told what is being made or read, how many more are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value each for some of the pictures.

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
        given = {"unit": self.unit, "higher_is_better": self.higher_is_better, "setup": self.setup}
        if self.unit == "share":
            return Score.share(self.values.astype(bool), **given)
        return Score.mean(self.values, **given)


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All that was measured of one row.

    Attributes:
        columns: Metrics with a value a picture, by name.
        sets: Metrics of all pictures together, by name.
        concepts: Efficacy or retention of each concept by name.
        seen: Whether the concept that each item asks for was seen; NaN where nobody looked.
    """

    columns: Mapping[str, Column]
    sets: Mapping[str, Score] = field(default_factory=dict)
    concepts: Mapping[str, Score] = field(default_factory=dict)
    seen: Float[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))

    @property
    def scores(self) -> dict[str, Score]:
        """Every metric by name; "efficacy" is that of the removed concept of which most is left."""
        scores = {name: column.score for name, column in self.columns.items() if len(column.items)}
        gone = [score for name, score in self.concepts.items() if score.setup and score.setup.metric == "efficacy"]
        worst = {"efficacy": min(gone, key=lambda score: score.value)} if gone else {}
        return {**worst, **scores, **self.sets}

    def of_pictures(self, benchmark: Benchmark, manifest: Manifest) -> "Measures":
        """Return the same with what made the pictures in every protocol."""
        made = {
            "benchmark": benchmark.id,
            "sampler": manifest.scheduler["name"],
            "steps": manifest.steps,
            "guidance_scale": manifest.guidance_scale,
        }

        def stamped(scores: Mapping[str, Score]) -> dict[str, Score]:
            return {
                name: replace(score, setup=score.setup and replace(score.setup, **made))
                for name, score in scores.items()
            }

        columns = {name: replace(column, setup=replace(column.setup, **made)) for name, column in self.columns.items()}
        return replace(self, columns=columns, sets=stamped(self.sets), concepts=stamped(self.concepts))


@runtime_checkable
class Metrics(Protocol):
    """What measures rows on one benchmark."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Metrics that are not computed, with the reason."""
        ...

    def prepare(self, reference: ImageStore | None) -> None:
        """Take the original's pictures under other seeds, for distances between sets."""
        ...

    def measure(self, store: ImageStore, original: ImageStore, on_picture: Callable[[int], None]) -> Measures:
        """Measure a row against the original's pictures of the same prompts and seeds."""
        ...


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
    _sets: "SetDistances | None" = field(default=None, init=False, repr=False)

    @property
    def skipped(self) -> dict[str, str]:
        """Distances between sets, where there are too few pictures."""
        kept = len(kept_items(self.benchmark.items))
        if kept >= ENOUGH_FOR_SETS:
            return {}
        why = f"{kept} pictures of what should stay; below {ENOUGH_FOR_SETS:,} the paired feature distance stands alone"
        return {"fd, kid": why}

    def prepare(self, reference: ImageStore | None) -> None:
        if reference is None or self.skipped:
            return
        self._sets = SetDistances(
            extractor("tinyworld-judge"), "the original model, same prompts, other seeds", ("fd", "kid")
        )
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
        columns = {
            f"efficacy_{wording}": self._share("efficacy", rows, 1 - unwanted[rows])
            for wording in dict.fromkeys(items[i].wording for i in removed)
            for rows in [chosen(removed, lambda i, w=wording: items[i].wording == w)]
        }
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
            score = clip_score(torch.from_numpy(features[rows]), self._texts(texts)).numpy()
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

    def _texts(self, texts: Sequence[str]) -> torch.Tensor:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return torch.zeros(0, 1)
        features = self.judge.text_features(distinct)
        at = {text: i for i, text in enumerate(distinct)}
        return features[[at[text] for text in texts]]

    def _share(self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"]) -> Column:
        return self._column(metric, rows, values, "share", True)

    def _column(
        self, metric: str, rows: Int[np.ndarray, " k"], values: Float[np.ndarray, " k"], unit: str, higher: bool
    ) -> Column:
        reads = "tiny world's judge, open_clip" if metric.startswith(("clip", "judge")) else "tiny world's oracle"
        against = "the original model, same prompts and seeds"
        setup = Setup(
            metric=metric,
            backbone=reads,
            reference=against if metric in ("retention", "oracle_distance", "judge_distance") else "",
        )
        return Column(items=rows, values=values, unit=unit, higher_is_better=higher, setup=setup)


@dataclass
class SetDistances:
    """Distances between sets of pictures.

    Attributes:
        extractor: Whose features they are.
        against: What the pictures are compared with, in words.
        names: What the Fréchet and the kernel distance are called over these features.
        reference: Features of the pictures compared with.
    """

    extractor: Extractor
    against: str
    names: tuple[str, str]
    reference: list[np.ndarray] = field(default_factory=list)

    def scores(self, features: np.ndarray) -> dict[str, Score]:
        """Return both distances of a row's features (n, dim)."""
        scores: dict[str, Score] = {}
        for name, metric in zip(self.names, (Fid, Kid), strict=True):
            distance = metric(extractor=self.extractor, reference=self.against)
            distance.update_features(features)
            for rows in self.reference:
                distance.update_features(rows, reference=True)
            score = distance.compute()
            setup = score.setup or Setup(metric=name)
            scores[name] = replace(score, setup=replace(setup, metric=name))
        return scores


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every row's numbers, with what is needed to believe and to repeat them.

    Attributes:
        benchmark: Prompts and seeds.
        rows: By name, in the order to show them.
        stores: Their pictures.
        measures: Their numbers.
        facts: Versions, machine, commit, seconds.
        skipped: Metrics that were not computed, with the reason.
    """

    benchmark: Benchmark
    rows: Mapping[str, Row]
    stores: Mapping[str, ImageStore]
    measures: Mapping[str, Measures]
    facts: Mapping[str, Any]
    skipped: Mapping[str, str]

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """Each row's scores by metric.

        Raises:
            InputError: Two rows measured a metric differently.
        """
        scores = {name: measures.scores for name, measures in self.measures.items()}
        for metric in dict.fromkeys(metric for row in scores.values() for metric in row):
            shared_setup(metric, {name: row[metric].setup for name, row in scores.items() if metric in row})
        return scores

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """What each metric of the judged row, minus the original's, comes to on the same pictures."""
        found: dict[str, dict[str, Any]] = {}
        if ERASED not in self.measures or ORIGINAL not in self.measures:
            return found
        after, before = (self.measures[name].columns for name in (ERASED, ORIGINAL))
        for name, column in after.items():
            if name.startswith(("retention", "oracle_distance", "judge_distance")) or not len(column.items):
                continue  # they compare with the original already
            values = before[name].values
            found[name] = dict(paired_bootstrap(values, column.values).as_json())
            if column.unit == "share":
                found[name]["mcnemar"] = mcnemar(values.astype(bool), column.values.astype(bool)).as_json()
        return found

    def as_json(self) -> dict[str, Any]:
        """Give all of it but the pictures as plain data."""
        scores = self.scores
        setups = {
            metric: score.setup.as_json() for row in scores.values() for metric, score in row.items() if score.setup
        }
        return {
            "format": FORMAT,
            "protocol": {
                "benchmark": self.benchmark.about(),
                "rows": {name: row.about for name, row in self.rows.items()},
                "metrics": setups,
                **self.facts,
            },
            "rows": {name: {metric: score.as_json() for metric, score in row.items()} for name, row in scores.items()},
            "concepts": {
                name: {
                    concept: {"metric": score.setup and score.setup.metric, **score.as_json()}
                    for concept, score in measures.concepts.items()
                }
                for name, measures in self.measures.items()
            },
            "differences": self.differences,
            "skipped": dict(self.skipped),
        }


def evaluate(
    rows: Sequence[Row],
    benchmark: Benchmark,
    metrics: Metrics,
    *,
    sampler: Sampler,
    on_picture: OnPicture | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Make the pictures of every row that are not there yet, and measure them.

    Args:
        rows: What to compare; the original must be among them.
        benchmark: Prompts and seeds.
        metrics: What to compute.
        sampler: Steps, guidance and batch size.
        on_picture: Told of progress.
        facts: More about the run, for the protocol.

    Raises:
        InputError: There is no original row, or a folder of pictures holds something else.
    """
    named = {row.name: row for row in rows}
    if ORIGINAL not in named:
        raise InputError(f"evaluate: expected the original among the rows, got {', '.join(named)}.")
    start = time.perf_counter()

    def advance(what: str, total: int) -> Callable[[int], None]:
        return lambda more: on_picture(what, more, total) if on_picture is not None else None

    stores = {
        row.name: row.pictures(benchmark, sampler, advance(f"pictures, {_spoken(row.name)}", benchmark.n))
        for row in rows
    }
    original = stores[ORIGINAL]
    kept = [benchmark.pairs[i] for i in kept_items(benchmark.items)]
    reference = None
    if len(kept) >= ENOUGH_FOR_SETS:
        others: list[Pair] = [(prompt, (seed + OTHER_SEEDS) % 2**31) for prompt, seed in kept]
        reference = named[ORIGINAL].made(others, sampler, advance("pictures, original, other seeds", len(others)))
    metrics.prepare(reference)
    measures, asks = {}, _drift_prompts(benchmark.items)
    for name, store in stores.items():
        check_paired(original, store)
        found = metrics.measure(store, original, advance(f"reading, {_spoken(name)}", benchmark.n))
        drift = _drift(named[name], asks, sampler, advance(f"attention, {_spoken(name)}", len(asks)))
        measures[name] = replace(found, sets={**found.sets, **drift}).of_pictures(benchmark, store.manifest)
    return Evaluation(
        benchmark=benchmark,
        rows=named,
        stores=stores,
        measures=measures,
        facts={
            **(facts or {}),
            "steps": sampler.steps,
            "guidance_scale": sampler.guidance_scale,
            "model": original.manifest.model,
            "versions": versions(),
            "git": commit(),
            "platform": platform.machine(),
            "threads": torch.get_num_threads(),
            "seconds": round(time.perf_counter() - start, 1),
        },
        skipped=metrics.skipped,
    )


def _drift_prompts(items: Sequence[Item]) -> list[Beside]:
    """Return prompts that name something removed and something kept, spread evenly over those of a benchmark."""
    asks = [
        Beside(prompt=item.prompt, removed=item.unwanted, beside=item.wanted, seed=item.seed)
        for item in items
        if item.unwanted and item.wanted and item.unwanted in item.prompt and item.wanted in item.prompt
    ]
    return asks[:: max(1, len(asks) // DRIFT_PROMPTS)][:DRIFT_PROMPTS]


def _drift(row: Row, asks: Sequence[Beside], sampler: Sampler, on_prompt: Callable[[int], None]) -> dict[str, Score]:
    """Return the attention indices of a row's model; none where there are no prompts for them."""
    if not asks:
        return {}
    drift = AttentionDrift(
        pipe=row.pipe,
        steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        negative_prompt=row.negative_prompt,
    )
    with row.applied():
        drift.update(asks, on_prompt)
    return {
        f"attention_{name}": replace(score, setup=Setup(metric=f"attention_{name}", resize="maps of 16 x 16"))
        for name, score in drift.compute().items()
    }


def write_scores(evaluation: Evaluation, folder: Path) -> Path:
    """Write scores.json into a folder and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    make_folder(folder)
    path = folder / "scores.json"
    write_whole(path, (json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def compare_scores(paths: Iterable[Path], metric: str) -> dict[str, float]:
    """Return one metric of the judged row of several score files, by file.

    Raises:
        InputError: A file is no score file or lacks the metric, or two were measured by different protocols.
    """
    setups: dict[str, Setup | None] = {}
    values: dict[str, float] = {}
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            values[str(path)] = float(data["rows"][ERASED][metric]["value"])
            setups[str(path)] = Setup.from_json(data["protocol"]["metrics"][metric])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected scores with {metric!r} of an erased model, got none ({type(error).__name__})."
                " Make them: erasure evaluate."
            ) from None
    shared_setup(metric, setups)
    return values


def kept_items(items: Sequence[Item]) -> Int[np.ndarray, " k"]:
    """Return the items that ask for nothing removed."""
    return np.array([i for i, item in enumerate(items) if not item.unwanted], dtype=np.int64)


def removed_items(items: Sequence[Item]) -> Int[np.ndarray, " k"]:
    """Return the items that ask for something removed."""
    return np.array([i for i, item in enumerate(items) if item.unwanted], dtype=np.int64)


def concept_scores(
    items: Sequence[Item],
    unwanted: Float[np.ndarray, " n"],
    wanted: Float[np.ndarray, " n"],
    before: Float[np.ndarray, " n"],
    share: Callable[[str, Int[np.ndarray, " k"], Float[np.ndarray, " k"]], Column],
) -> dict[str, Score]:
    """Return the efficacy of each removed and the retention of each kept concept of which there is a picture.

    Args:
        items: What is asked for.
        unwanted: Whether each item's removed concept was seen; NaN where nobody looked.
        wanted: The same of what should stay.
        before: The same of what should stay, in the original's pictures.
        share: Makes the column of a metric from rows and their values.
    """
    scores: dict[str, Score] = {}
    removed, kept = removed_items(items), kept_items(items)
    for name in dict.fromkeys(items[i].unwanted for i in removed):
        rows = chosen(removed, lambda i, n=name: items[i].unwanted == n and not np.isnan(unwanted[i]))
        if len(rows):
            scores[name] = share("efficacy", rows, 1 - unwanted[rows]).score
    for name in dict.fromkeys(items[i].wanted for i in kept if items[i].wanted):
        rows = chosen(kept, lambda i, n=name: items[i].wanted == n and before[i] == 1 and not np.isnan(wanted[i]))
        if len(rows):
            scores[name] = share("retention", rows, wanted[rows]).score
    return scores


def chosen(rows: Int[np.ndarray, " k"], which: Callable[[int], bool]) -> Int[np.ndarray, " j"]:
    """Return the rows of which something holds."""
    return np.array([i for i in rows.tolist() if which(i)], dtype=np.int64)


def _spoken(name: str) -> str:
    return name.replace("_", " ")
