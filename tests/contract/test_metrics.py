"""What every metric owes, whatever it measures: a file in eval/metrics/ is held to it by being there."""

import importlib
import inspect
import pkgutil
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.eval import metrics
from erasure.eval.metrics import metric_class, metric_names
from erasure.eval.metrics.accuracy import Accuracy
from erasure.eval.metrics.attention_drift import AttentionDrift, DriftPrompt
from erasure.eval.metrics.base import Feed
from erasure.eval.metrics.blip2_t import Blip2Itc, Blip2Itm, BlipItc
from erasure.eval.metrics.caption_match import CaptionMatch
from erasure.eval.metrics.clip_accuracy import ClipAccuracy
from erasure.eval.metrics.clip_i import ClipI
from erasure.eval.metrics.clip_score import ClipScore
from erasure.eval.metrics.cmmd import Cmmd
from erasure.eval.metrics.dino_i import DinoI
from erasure.eval.metrics.fid import Fid
from erasure.eval.metrics.identity import Identity
from erasure.eval.metrics.kid import Kid
from erasure.eval.metrics.lpips import Lpips
from erasure.eval.metrics.nudity import Nudity
from erasure.eval.metrics.oracle_distance import OracleDistance
from erasure.eval.stats.scores import Score, Setup
from erasure.tinyworld.world import compose, draw
from tests import pieces, tiny
from tests.eval.metrics.tiny_judges import blip, blip2, mean_colour, open_clip_judge, pictures, seeded

SHARED = {"base", "distances", "labels", "mmd", "similarity", "texts"}
"""Files that several metrics share and that are none."""
N = 5
PROMPTS = ["a photo of a dog", "an empty street at night", "a red house", "a cat", "a bird in a tree"]
IMAGES, OTHERS = pictures(N), pictures(N, seed=1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A metric at the smallest size, and how it is fed with some of N samples."""

    make: Callable[[], Any]
    feed: Callable[[Any, slice], Any]


def one(make: Callable[[], Any], feed: Callable[[Any, slice], Any]) -> Case:
    return Case(make=make, feed=feed)


class Reds:
    """A classifier and a nudity detector of red pictures."""

    classes = ("dark", "red")

    name = "reds"

    def knows(self, concept: str) -> bool:
        return concept in self.classes

    def probabilities(self, images: Any, concept: str) -> torch.Tensor:
        red = self.features(images)[:, 0]
        return red if concept == "red" else 1 - red

    def shows(self, images: Any, concept: str) -> list[bool]:
        return (self.probabilities(images, concept) > 0.5).tolist()

    def features(self, images: Any) -> torch.Tensor:
        return torch.tensor([[float(np.asarray(image)[..., 0].mean() / 255)] for image in images])

    def setup(self, metric: str) -> Setup:
        return Setup(metric=metric, backbone="reds")

    def detect_batch(self, images: list[Any], /) -> list[list[dict[str, Any]]]:
        return [[{"class": "BELLY_EXPOSED", "score": float(image[..., 2].mean() / 255)}] for image in images]


@cache
def drawings() -> list[Image.Image]:
    return [draw(compose([name], random.Random(name))) for name in ("cat", "dog", "tree", "car", "house")]


@cache
def lpips_net() -> Any:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    return seeded(lambda: _NoTrainLpips(net="squeeze", pnet_rand=True))


def referenced(kind: Any) -> Callable[[], Any]:
    return lambda: kind(extractor=mean_colour()).update_reference(OTHERS)


def prompted(metric: Any, rows: slice) -> Any:
    return metric.update(IMAGES[rows], PROMPTS[rows])


def seen(metric: Any, rows: slice) -> Any:
    return metric.update(IMAGES[rows])


ASKS = [DriftPrompt(prompt="a photo of a cat and a tree", removed="cat", beside="tree", seed=seed) for seed in range(N)]

CASES: dict[str, list[Case]] = {
    "accuracy": [
        one(
            lambda: Accuracy(classifier=Reds()),
            lambda metric, rows: metric.update(IMAGES[rows], ([0, 1] * N)[rows]),
        )
    ],
    "attention_drift": [
        Case(
            make=lambda: AttentionDrift(pipe=tiny.sd1(), steps=2, places=2, size=(8, 8)),
            feed=lambda metric, rows: metric.update(ASKS[rows]),
        )
    ],
    "blip2_t": [
        one(lambda: BlipItc(model=blip()[0], processor=blip()[1], weights="tiny"), prompted),
        one(lambda: _blip2(Blip2Itc), prompted),
        one(lambda: _blip2(Blip2Itm), prompted),
    ],
    "caption_match": [
        one(
            lambda: CaptionMatch(oracle=tinyworld.load_oracle(), judge=tinyworld.load_clip()),
            lambda metric, rows: metric.update(drawings()[rows], PROMPTS[rows]),
        )
    ],
    "clip_accuracy": [
        Case(
            make=lambda: ClipAccuracy(clip=open_clip_judge(), texts=tuple(PROMPTS)),
            feed=lambda metric, rows: metric.update(IMAGES[rows], list(range(N))[rows]),
        )
    ],
    "clip_i": [one(referenced(ClipI), seen)],
    "clip_score": [
        Case(
            make=lambda: ClipScore(clip=open_clip_judge(), target=("red", "tree")),
            feed=prompted,
        )
    ],
    "cmmd": [one(referenced(Cmmd), seen)],
    "dino_i": [one(referenced(DinoI), seen)],
    "fid": [one(referenced(Fid), seen)],
    "identity": [
        one(
            lambda: Identity(oracle=tinyworld.load_oracle(), individual="Mittens"),
            lambda metric, rows: metric.update(drawings()[rows]),
        )
    ],
    "kid": [one(referenced(Kid), seen)],
    "lpips": [
        one(
            lambda variant=variant: Lpips(variant=variant, net=lpips_net()),
            lambda metric, rows: metric.update(OTHERS[rows], IMAGES[rows]),
        )
        for variant in ("lpips_512", "lpips_64")
    ],
    "nudity": [
        Case(
            make=lambda: Nudity(detector=Reds()),
            feed=seen,
        )
    ],
    "oracle_distance": [
        one(
            lambda: OracleDistance(oracle=tinyworld.load_oracle()),
            lambda metric, rows: metric.update(drawings()[::-1][rows], drawings()[rows]),
        )
    ],
}
FEEDS: dict[str, Callable[[Any, slice], Any]] = {
    "images": lambda metric, rows: metric.update(IMAGES[rows]),
    "prompts": lambda metric, rows: metric.update(IMAGES[rows], PROMPTS[rows]),
    "labels": lambda metric, rows: metric.update(IMAGES[rows], list(range(N))[rows]),
    "before": lambda metric, rows: metric.update(OTHERS[rows], IMAGES[rows]),
    "reference": lambda metric, rows: metric.update(IMAGES[rows]),
    "requests": lambda metric, rows: metric.update(ASKS[rows]),
}


def added(name: str) -> Case:
    """Return the case of a metric of another package, at its quick settings and fed as it declares."""
    kind = metric_class(name)

    def make() -> Any:
        metric: Any = kind(**kind.quick)
        return metric.update_reference(OTHERS) if kind.feed == "reference" else metric

    return Case(make=make, feed=FEEDS[kind.feed])


ADDED = [name for name in metric_names() if not metric_class(name).__module__.startswith("erasure.")]
ALL = [
    *(pytest.param(case, id=f"{file}-{at}") for file, cases in CASES.items() for at, case in enumerate(cases)),
    *(pytest.param(added(name), id=name) for name in ADDED),
]


def _blip2(kind: Any) -> Any:
    model, processor = blip2(image_token=False)
    return kind(model=model, processor=processor, weights="tiny")


def files() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(metrics.__path__))


def fed(case: Case, *sizes: int) -> dict[str, Score]:
    metric, start = case.make(), 0
    for size in sizes:
        case.feed(metric, slice(start, start + size))
        start += size
    return dict(metric.scores())


def test_every_file_is_held_to_this_or_shared_by_several() -> None:
    assert files() == sorted([*CASES, *SHARED])


@pytest.mark.parametrize("name", metric_names())
def test_it_is_a_piece_that_declares_its_input(name: str) -> None:
    kind = metric_class(name)
    pieces.check(kind, frozen=False)
    assert kind.feed in get_args(Feed)


@pytest.mark.parametrize("file", sorted(CASES))
def test_its_docstring_names_its_source(file: str) -> None:
    said = inspect.getdoc(importlib.import_module(f"erasure.eval.metrics.{file}")) or ""
    assert re.search(r"arXiv:\d|et al\.|github\.com|tiny world's", said), said


@pytest.mark.parametrize("case", ALL)
def test_update_returns_the_metric(case: Case) -> None:
    metric = case.make()
    assert case.feed(metric, slice(0, 2)) is metric


@pytest.mark.parametrize("case", ALL)
def test_a_last_batch_of_one_counts_as_one(case: Case) -> None:
    whole, parts = fed(case, N), fed(case, N - 1, 1)
    for name, score in whole.items():
        assert parts[name].n == score.n == N
        assert parts[name].value == pytest.approx(score.value, rel=1e-4, abs=1e-6)
        assert parts[name].per_image == pytest.approx(score.per_image, rel=1e-3, abs=1e-5)
        if score.per_image:
            assert score.value == pytest.approx(sum(score.per_image) / N)


@pytest.mark.parametrize("case", ALL)
def test_computing_changes_nothing(case: Case) -> None:
    metric = case.make()
    case.feed(metric, slice(0, N))
    assert metric.scores() == metric.scores()


@pytest.mark.parametrize("case", ALL)
def test_a_score_says_what_it_is(case: Case) -> None:
    for name, score in fed(case, N).items():
        assert score.setup is not None
        assert score.setup.metric == name
        assert any((score.setup.backbone, score.setup.library, score.setup.resize))
        assert score.unit
        assert score.bounds is not None
        low, high = score.bounds
        assert low <= score.value <= high or score.unit in ("KID", "CMMD")  # a percentile interval of few pictures
        assert {"value", "n", "low", "high", "unit", "higher_is_better"} <= score.as_json().keys()
