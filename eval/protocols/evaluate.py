"""Evaluate a model on a benchmark: the images of each row, the metrics over them, and what differs from the original.

On the tiny world the oracle and the judge read the images. On other models what is computed depends on the weights
in the local cache, and what is not computed is listed with the reason.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.progress import OnProgress, staged
from erasure.provenance import provenance
from erasure.sampling import Pair, SamplingSettings

from ..benchmarks import Benchmark, Item
from ..images.store import ImageStore, check_paired, closed
from ..metrics.attention_drift import AttentionDrift, DriftPrompt
from ..stats.allocation import evenly
from ..stats.paired import mcnemar, paired_bootstrap
from ..stats.scores import Score, shared_setup
from .measures import Measures, Metrics, kept_items
from .variants import ERASED, ORIGINAL, Variant

FORMAT = "erasure-scores/1"
DRIFT_PROMPTS = 24
"""Prompts that name something removed and something beside it whose attention maps are followed, at most."""
SEED_SHIFT = 2**30
"""Added to each seed for the images of the original that sets of images are compared with."""

OTHER_SCHEDULER = "sampled with {}; the published numbers of {} are of {}, and these are not to be compared with them"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every row's numbers, with what is needed to believe and to repeat them.

    Attributes:
        benchmark: Prompts and seeds.
        rows: By name, in the order to show them.
        stores: Their images.
        measures: Their numbers.
        facts: Versions, machine, commit, seconds.
        skipped: Metrics that were not computed, with the reason.
        warnings: What a reader must know before comparing a number with another one.
    """

    benchmark: Benchmark
    rows: Mapping[str, Variant]
    stores: Mapping[str, ImageStore]
    measures: Mapping[str, Measures]
    facts: Mapping[str, Any]
    skipped: Mapping[str, str]
    warnings: tuple[str, ...] = ()

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
        """What each metric of the judged row, minus the original's, comes to on the same images."""
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
        """Give all of it but the images as plain data."""
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
            "warnings": list(self.warnings),
        }


def evaluate(
    rows: Sequence[Variant],
    benchmark: Benchmark,
    metrics: Metrics,
    *,
    sampler: SamplingSettings,
    on_progress: OnProgress | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Make the images of every row that are not there yet, and measure them.

    Args:
        rows: What to compare; the original must be among them.
        benchmark: Prompts and seeds.
        metrics: What to compute.
        sampler: Steps, guidance and batch size.
        on_progress: Receives the progress of each stage.
        facts: More about the run, for the protocol.

    Raises:
        InputError: There is no original row, two rows are sampled differently, or a folder of images holds something
            else.
    """
    named = {row.name: row for row in rows}
    if ORIGINAL not in named:
        raise InputError(f"evaluate: expected the original among the rows, got {', '.join(named)}.")
    start = time.perf_counter()

    stores = {row.name: row.store(benchmark.pairs, sampler) for row in rows}
    original = stores[ORIGINAL]
    for store in stores.values():
        check_paired(original, store)  # before any image is made
    for name, store in stores.items():
        named[name].fill(store, sampler.batch_size, staged(on_progress, f"images, {display_name(name)}"))
    if metrics.wants_reference:
        kept = [benchmark.pairs[i] for i in kept_items(benchmark.items)]
        others: list[Pair] = [(prompt, (seed + SEED_SHIFT) % 2**31) for prompt, seed in kept]
        reference = named[ORIGINAL].store(others, sampler)
        counted = staged(on_progress, "images, original, other seeds")
        metrics.prepare(named[ORIGINAL].fill(reference, sampler.batch_size, counted))
    measured = metrics.measure(stores, on_progress)
    measures, asks = {}, drift_prompts(benchmark.items)
    for name, store in stores.items():
        found = measured[name]
        drift = _drift(named[name], asks, sampler, staged(on_progress, f"attention, {display_name(name)}"))
        measures[name] = replace(found, sets={**found.sets, **drift}).of_pictures(
            benchmark, closed(store), closed(original).model
        )
    alone, backbone = measures[ORIGINAL].alone, backbone_of(named[ORIGINAL].pipe)
    used, published = closed(original).scheduler["name"], benchmark.published_scheduler
    return Evaluation(
        benchmark=benchmark,
        rows=named,
        stores=stores,
        measures={name: found.without(alone) for name, found in measures.items()},
        facts={
            **provenance("open_clip_torch", "torchmetrics", "torchvision", device=str(backbone.device), start=start),
            **(facts or {}),
            "sampler": used,
            "steps": sampler.steps,
            "guidance_scale": sampler.guidance_scale,
            "model": closed(original).model,
            "fingerprint": backbone.fingerprint(),  # as ledgers name it
        },
        skipped={**metrics.skipped, **alone},
        warnings=(
            *([] if used == published else [OTHER_SCHEDULER.format(used, benchmark.name, published)]),
            *metrics.warnings,
            *dict.fromkeys(told for found in measures.values() for told in found.warnings),
        ),
    )


def drift_prompts(items: Sequence[Item]) -> list[DriftPrompt]:
    """Return prompts that name something removed and something kept, spread evenly over those of a benchmark."""
    asks = [
        DriftPrompt(prompt=item.prompt, removed=item.unwanted, beside=item.wanted, seed=item.seed)
        for item in items
        if item.unwanted and item.wanted and item.unwanted in item.prompt and item.wanted in item.prompt
    ]
    return evenly(asks, DRIFT_PROMPTS)


def _drift(
    row: Variant, asks: Sequence[DriftPrompt], sampler: SamplingSettings, on_progress: OnProgress | None
) -> dict[str, Score]:
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
        drift.update(asks, on_progress)
    return {f"attention_{name}": score for name, score in drift.compute().items()}


def write_scores(evaluation: Evaluation, folder: Path) -> Path:
    """Write scores.json into a folder and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    make_folder(folder)
    path = folder / "scores.json"
    write_whole(path, (json.dumps(evaluation.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def display_name(name: str) -> str:
    """Return the name of a row or a metric for people."""
    return name.replace("_", " ")
