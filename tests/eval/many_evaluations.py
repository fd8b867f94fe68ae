"""Evaluates an untrained tiny world; in one of several processes or alone."""

from pathlib import Path
from typing import Any

import torch

from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.protocols.evaluate import evaluate
from erasure.eval.protocols.tinyworld_metrics import TinyWorldMetrics
from erasure.eval.protocols.variants import ERASED, Variant, destroyed, reference_variants
from erasure.sampling import SamplingSettings
from erasure.tinyworld.judge import WorldClip, build
from tests.eval import world


def scores(folder: Path) -> dict[str, Any]:
    """Return the numbers of a spoiled model beside the original, with all pictures in a folder."""
    pipe = world.pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = WorldClip(build(), pipe.tokenizer)
    spoiled = Variant(name=ERASED, pipe=pipe, about="spoiled", applied=lambda: destroyed(pipe, 0.2), folder=folder)
    [original, *_] = reference_variants(pipe, ["cat"])
    benchmark = TinyWorld(removed=("cat",), total=20)
    metrics = TinyWorldMetrics(benchmark=benchmark, oracle=world.oracle(), judge=judge)
    found = evaluate([spoiled, original], benchmark, metrics, sampler=SamplingSettings(steps=2, batch_size=4))
    return found.as_json()["rows"]
