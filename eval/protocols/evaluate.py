"""Evaluation on a benchmark: the images of each variant, the metrics over them, and differences from the original.

On the tiny world the oracle and its CLIP read the images. For other models the metrics depend on the weights in the
local cache; metrics that are not computed are listed with the reason.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.progress import OnProgress, staged
from erasure.provenance import provenance
from erasure.sampling import Pair, SamplingSettings

from ..benchmarks import Benchmark, Item
from ..images.store import ImageStore, check_paired, closed
from ..metrics.attention_drift import AttentionDrift, DriftPrompt, map_size
from ..stats.allocation import evenly
from ..stats.paired import mcnemar, paired_bootstrap
from ..stats.scores import Score, shared_setup
from .measures import Measures, Metrics, kept_items
from .variants import ERASED, ORIGINAL, Variant

FORMAT = "erasure-scores/1"
DRIFT_PROMPTS = 24
"""Largest number of prompts, each with a removed and another concept, whose attention maps are compared."""
SEED_SHIFT = 2**30
"""Offset of the seeds of the original's images that sets are compared with."""

OTHER_SCHEDULER = "sampled with {}; the published numbers of {} are of {}, and these are not to be compared with them"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of all variants, with the facts that a repetition needs.

    Attributes:
        benchmark: Prompts and seeds.
        variants: Variants by name, in the order of display.
        stores: Images of each variant.
        measures: Measures of each variant.
        facts: Versions, machine, commit, seconds.
        skipped: Metrics that were not computed, with the reason.
        warnings: Limits on comparing the numbers with others.
    """

    benchmark: Benchmark
    variants: Mapping[str, Variant]
    stores: Mapping[str, ImageStore]
    measures: Mapping[str, Measures]
    facts: Mapping[str, Any]
    skipped: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """Scores of each variant by metric.

        Raises:
            InputError: Two variants measured a metric differently.
        """
        scores = {name: measures.scores for name, measures in self.measures.items()}
        for metric in dict.fromkeys(metric for row in scores.values() for metric in row):
            shared_setup(metric, {name: row[metric].setup for name, row in scores.items() if metric in row})
        return scores

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Paired difference of each metric between the judged variant and the original."""
        differences: dict[str, dict[str, Any]] = {}
        if ERASED not in self.measures or ORIGINAL not in self.measures:
            return differences
        after, before = (self.measures[name].columns for name in (ERASED, ORIGINAL))
        for name, column in after.items():
            if name.startswith(("retention", "oracle_distance", "judge_distance")) or not len(column.items):
                continue  # they compare with the original already
            values = before[name].values
            differences[name] = dict(paired_bootstrap(values, column.values).as_json())
            if column.unit == "share":
                differences[name]["mcnemar"] = mcnemar(values.astype(bool), column.values.astype(bool)).as_json()
        return differences

    def as_json(self) -> dict[str, Any]:
        """Return everything except the images as plain data."""
        scores = self.scores
        setups = {
            metric: score.setup.as_json() for row in scores.values() for metric, score in row.items() if score.setup
        }
        return {
            "format": FORMAT,
            "protocol": {
                "benchmark": self.benchmark.about(),
                "rows": {name: variant.about for name, variant in self.variants.items()},
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


@checks_arguments
def evaluate(
    variants: Sequence[Variant],
    benchmark: Benchmark,
    metrics: Metrics,
    *,
    sampler: SamplingSettings,
    on_progress: OnProgress | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Sample the missing images of every variant and measure them.

    Args:
        variants: Models to compare, the original among them.
        benchmark: Prompts and seeds.
        metrics: Metrics of the benchmark.
        sampler: Sampling settings.
        on_progress: Receives the progress of each stage.
        facts: Further facts about the run, for the protocol.

    Raises:
        InputError: The original is missing, two variants are sampled differently, or a folder holds other images.
    """
    named = {variant.name: variant for variant in variants}
    if ORIGINAL not in named:
        raise InputError(f"evaluate: expected the original among the rows, got {', '.join(named)}.")
    start = time.perf_counter()
    stores = _stores(named, benchmark, sampler, on_progress)
    if metrics.wants_reference:
        metrics.prepare(_reference(named[ORIGINAL], benchmark, sampler, on_progress))
    original, backbone = closed(stores[ORIGINAL]), backbone_of(named[ORIGINAL].pipe)
    measured = metrics.measure(stores, on_progress)
    measures, prompts = {}, drift_prompts(benchmark.items)
    for name, store in stores.items():
        counted = staged(on_progress, f"attention, {display_name(name)}")
        sets = {**measured[name].sets, **_drift(named[name], prompts, sampler, counted)}
        measures[name] = replace(measured[name], sets=sets).of_images(benchmark, closed(store), original.model)
    unpaired, scheduler = measures[ORIGINAL].unpaired, original.scheduler["name"]
    return Evaluation(
        benchmark=benchmark,
        variants=named,
        stores=stores,
        measures={name: each.without(unpaired) for name, each in measures.items()},
        facts={
            **provenance("open_clip_torch", "torchmetrics", "torchvision", device=str(backbone.device), start=start),
            **(facts or {}),
            "sampler": scheduler,
            "steps": sampler.steps,
            "guidance_scale": sampler.guidance_scale,
            "model": original.model,
            "fingerprint": backbone.fingerprint(),  # as ledgers name it
        },
        skipped={**metrics.skipped, **unpaired},
        warnings=_warnings(benchmark, scheduler, metrics, measures),
    )


def _stores(
    variants: Mapping[str, Variant], benchmark: Benchmark, sampler: SamplingSettings, on_progress: OnProgress | None
) -> dict[str, ImageStore]:
    """Return the filled store of each variant; that they are paired is checked before any image is sampled."""
    stores = {name: variant.store(benchmark.pairs, sampler) for name, variant in variants.items()}
    for store in stores.values():
        check_paired(stores[ORIGINAL], store)
    for name, store in stores.items():
        variants[name].fill(store, sampler.batch_size, staged(on_progress, f"images, {display_name(name)}"))
    return stores


def _reference(
    original: Variant, benchmark: Benchmark, sampler: SamplingSettings, on_progress: OnProgress | None
) -> ImageStore:
    """Return the original's images under other seeds, for distances between sets."""
    kept = [benchmark.pairs[i] for i in kept_items(benchmark.items)]
    others: list[Pair] = [(prompt, (seed + SEED_SHIFT) % 2**31) for prompt, seed in kept]
    counted = staged(on_progress, "images, original, other seeds")
    return original.fill(original.store(others, sampler), sampler.batch_size, counted)


def _warnings(
    benchmark: Benchmark, scheduler: str, metrics: Metrics, measures: Mapping[str, Measures]
) -> tuple[str, ...]:
    published = benchmark.published_scheduler
    other = [] if scheduler == published else [OTHER_SCHEDULER.format(scheduler, benchmark.name, published)]
    return (*other, *metrics.warnings, *dict.fromkeys(text for each in measures.values() for text in each.warnings))


def drift_prompts(items: Sequence[Item]) -> list[DriftPrompt]:
    """Return prompts that name a removed and a kept concept, evenly spaced over those of a benchmark."""
    prompts = [
        DriftPrompt(prompt=item.prompt, removed=item.unwanted, beside=item.retained, seed=item.seed)
        for item in items
        if item.unwanted and item.retained and item.unwanted in item.prompt and item.retained in item.prompt
    ]
    return evenly(prompts, DRIFT_PROMPTS)


def _drift(
    variant: Variant, prompts: Sequence[DriftPrompt], sampler: SamplingSettings, on_progress: OnProgress | None
) -> dict[str, Score]:
    """Return the attention indices of a variant; none without prompts for them."""
    if not prompts:
        return {}
    drift = AttentionDrift(
        pipe=variant.pipe,
        steps=sampler.steps,
        guidance_scale=sampler.guidance_scale,
        negative_prompt=variant.negative_prompt,
        size=map_size(backbone_of(variant.pipe)),
    )
    with variant.applied():
        drift.update(prompts, on_progress)
    return {f"attention_{name}": score for name, score in drift.compute().items()}


@checks_arguments
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
    """Return the name of a variant or a metric for people."""
    return name.replace("_", " ")
