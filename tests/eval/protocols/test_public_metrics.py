"""The metrics of benchmarks for real models: which are there, who may judge, and their arithmetic."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.errors import InputError
from erasure.eval.benchmarks import Benchmark
from erasure.eval.benchmarks.cifar10_paraphrase import Cifar10Paraphrase
from erasure.eval.benchmarks.coco import Coco
from erasure.eval.benchmarks.imagenette import Imagenette
from erasure.eval.benchmarks.sixcd_dual import SixCdDual
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.protocols import public_metrics as public
from erasure.eval.protocols.evaluate import evaluate
from erasure.eval.protocols.measures import Measures
from erasure.eval.protocols.public_metrics import PublicMetrics
from erasure.eval.protocols.sources import metrics_of
from erasure.eval.protocols.variants import reference_variants
from erasure.eval.stats.scores import Setup
from erasure.sampling import SamplingSettings
from tests.eval import world
from tests.eval.metrics.tiny_judges import mean_colour, open_clip_judge
from tests.eval.stores import store_of


class Shades:
    """A classifier that can be told what to say: the picture's red level is the class that it shows."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    name = "shades"

    def knows(self, concept: str) -> bool:
        return concept in self.classes

    def probabilities(self, images: Sequence[Image.Image], concept: str) -> torch.Tensor:
        return torch.tensor(self.shows(images, concept), dtype=torch.float)

    def shows(self, images: Sequence[Image.Image], concept: str) -> list[bool]:
        return [int(np.asarray(image)[0, 0, 0]) == self.classes.index(concept) for image in images]

    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor([[float(np.asarray(image)[0, 0, 0])] for image in images])

    def setup(self, metric: str) -> Setup:
        return Setup(metric=f"{metric}_top1", backbone="shades")


def imagenet() -> Shades:
    from torchvision.models import ResNet50_Weights

    return Shades(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def cifar10(folder: Path, removed: tuple[str, ...] = ("cat",)) -> Benchmark:
    rows = [
        ["case_number", "prompt", "class", "evaluation_seed"],
        ["0", "a photo of a cat", "cat", "0"],
        ["1", "a feline on a sofa", "cat", "1"],
        ["2", "a photo of a ship", "ship", "2"],
        ["3", "a vessel at sea", "ship", "3"],
    ]
    return Cifar10Paraphrase(path=written(folder, rows), removed=removed)


def imagenette(folder: Path, removed: tuple[str, ...] = ("tench",)) -> Benchmark:
    rows = [["case_number", "prompt", "evaluation_seed", "class"], ["0", "a tench", "0", "tench"]]
    rows += [["1", "a church", "1", "church"]]
    return Imagenette(path=written(folder, rows), removed=removed)


def written(folder: Path, rows: list[list[str]]) -> Path:
    path = folder / "list.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def no_weights(*_: object, **__: object) -> Any:
    raise MissingWeightsError("nothing here")


def test_no_other_list_of_classes_judges_a_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # ImageNet's class 3 is the tiger shark: every picture of a cat would have counted as one of something else.
    monkeypatch.setattr(public, "CLASSIFIERS", {"resnet50": lambda device: imagenet()})
    monkeypatch.setattr(public.OpenClip, "load", lambda device: Plain())
    found = PublicMetrics.available(cifar10(tmp_path))
    assert found.classifier is None
    assert "--classifier" in found.skipped["efficacy, retention"]
    with pytest.raises(InputError, match=r"class 0 is 'airplane', got one that calls it 'tench'\. Name another"):
        PublicMetrics(benchmark=cifar10(tmp_path), clip=None, classifier=imagenet(), features=None)
    few = Shades(["airplane", "automobile"])
    with pytest.raises(InputError, match="class 2 is 'bird', got one that calls it None"):
        PublicMetrics(benchmark=cifar10(tmp_path), clip=None, classifier=few, features=None)
    assert isinstance(PublicMetrics.available(imagenette(tmp_path)).classifier, Shades)


def test_a_classifier_may_be_named_where_there_are_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def of_the_hub(source: str, *, device: str) -> Shades:
        asked.append(source)
        return Shades([f"{name}, or so" for name in ("Airplane", *list(cifar10(tmp_path).classes)[1:])])

    monkeypatch.setattr(public, "hub_classifier", of_the_hub)
    monkeypatch.setattr(public.OpenClip, "load", no_weights)
    found = metrics_of(cifar10(tmp_path), "cpu", "someone/cifar10")
    assert asked == ["someone/cifar10"]
    assert "efficacy, retention" not in found.skipped
    rows = [["case_number", "prompt", "evaluation_seed"], ["0", "a cat", "0"]]
    with pytest.raises(InputError, match="--classifier: expected none for coco, got 'someone/cifar10'"):
        metrics_of(Coco(path=written(tmp_path, rows)), "cpu", "someone/cifar10")


class Plain:
    """A CLIP to whom all pictures and texts are alike."""

    def image_features(self, pictures: list[Any], /) -> torch.Tensor:
        return torch.ones(len(pictures), 2)

    def text_features(self, texts: list[str], /) -> torch.Tensor:
        return torch.ones(len(texts), 2)


def measured(
    folder: Path, benchmark: Benchmark, levels: Sequence[int], before: Sequence[int] | None = None, **judges: Any
) -> Measures:
    """Return what is measured of pictures of some red levels."""
    given = {"clip": None, "classifier": Shades(list(benchmark.classes)), "features": None, **judges}
    stores = {
        name: store_of(folder, [Image.new("RGB", (8, 8), (level, 0, 0)) for level in shown], benchmark.pairs, name)
        for name, shown in (("erased", levels), ("original", levels if before is None else before))
    }
    return PublicMetrics(benchmark=benchmark, **given).measure(stores, lambda more: None)["erased"]


def test_no_erasure_score_without_one_of_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = measured(tmp_path, cifar10(tmp_path), [3, 0, 8, 8], clip=Plain())
    assert not both.unpaired
    lines = [["case_number", "prompt", "class", "evaluation_seed"], ["0", "a photo of a cat", "cat", "0"]]
    only = Cifar10Paraphrase(path=written(tmp_path, lines), removed=("cat",))
    gone = measured(tmp_path, only, [0], clip=Plain())
    assert set(gone.unpaired) == {"efficacy", "efficacy_explicit", "clip_score_removed"}
    shown = gone.without(gone.unpaired)
    assert set(shown.scores) == {"clip_score_rest"}  # which is of what stays
    assert not shown.concepts
    judges = PublicMetrics(benchmark=only, clip=None, classifier=Shades(list(only.classes)), features=None)
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    rows = reference_variants(world.pipeline(), ["cat"])
    found = evaluate(rows, only, judges, sampler=SamplingSettings(steps=2, batch_size=4)).as_json()
    assert not any(found["rows"].values())
    assert not any(found["concepts"].values())
    assert found["skipped"]["efficacy"] == "no image of what should stay could be judged beside it"


def test_each_wording_has_an_efficacy_of_its_own(tmp_path: Path) -> None:
    # The named cat is gone, the paraphrased one is not; one ship of two is lost, of which the original had both.
    found = measured(tmp_path, cifar10(tmp_path), [8, 3, 8, 0], [3, 3, 8, 8]).scores
    assert {name: (score.value, score.n) for name, score in found.items()} == {
        "efficacy": (0.5, 2),
        "efficacy_explicit": (1.0, 1),
        "efficacy_paraphrase": (0.0, 1),
        "shown": (0.5, 2),
        "retention": (0.5, 2),
    }


def test_what_the_list_does_not_ask_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public.OpenClip, "load", lambda device: Plain())
    monkeypatch.setattr(public, "CLASSIFIERS", {"resnet50": lambda device: imagenet()})
    path = imagenette(tmp_path).path
    others = Imagenette(path=path, removed=("Van Gogh",), allow_unlisted=True)
    found = PublicMetrics.available(others)
    assert found.skipped["efficacy of Van Gogh"] == "no prompt of imagenette asks for it"
    pictures = [Image.new("RGB", (8, 8))] * 2
    stores = {name: store_of(tmp_path, pictures, others.pairs, name) for name in ("erased", "original")}
    for measures in found.measure(stores, lambda more: None).values():
        assert set(measures.scores) == {"clip_score", "shown", "retention"}


def test_without_any_weights_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public.OpenClip, "load", no_weights)
    monkeypatch.setattr(public, "CLASSIFIERS", {"resnet50": no_weights})
    with pytest.raises(InputError, match=r"to judge imagenette by, got nothing\. .*efficacy, retention: nothing here"):
        PublicMetrics.available(imagenette(tmp_path))
    monkeypatch.setattr(public, "CLASSIFIERS", {"resnet50": lambda device: imagenet()})
    assert PublicMetrics.available(imagenette(tmp_path)).clip is None
    rows = [["case_number", "prompt", "evaluation_seed", "class"], ["0", "a tench", "0", "tench"]]
    only = Imagenette(path=written(tmp_path, rows), removed=("tench",))
    with pytest.raises(InputError, match="efficacy: no prompt asks for what should stay, and it is not shown alone"):
        PublicMetrics.available(only)


def test_other_seeds_are_drawn_for_distances_that_are_computed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(public, "ENOUGH_FOR_SETS", 2)
    monkeypatch.setattr(public.OpenClip, "load", lambda device: Plain())
    told: list[str] = []

    def drawn(features: Any) -> set[str]:
        monkeypatch.setattr(public, "extractor", features)
        told.clear()
        benchmark = cifar10(tmp_path)
        judges = PublicMetrics.available(benchmark)
        assert judges.wants_reference == (judges.features is not None)
        rows = reference_variants(world.pipeline(), ["cat"])[:1]
        found = evaluate(
            rows,
            benchmark,
            judges,
            sampler=SamplingSettings(steps=2, batch_size=4),
            on_progress=lambda progress: told.append(progress.stage),
        )
        return set(found.scores["original"])

    assert "fid" not in drawn(no_weights)
    assert "images, original, other seeds" not in told
    assert {"fid", "kid"} < drawn(lambda name, device: mean_colour())
    assert "images, original, other seeds" in told


class Letters:
    """A CLIP that sees nothing and reads the first letters: texts of one length are told apart by them."""

    def image_features(self, pictures: list[Any], /) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(pictures))

    def text_features(self, texts: list[str], /) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0] if text == "skiing on a lake" else [0.0, 1.0] for text in texts])


def test_the_rest_of_a_prompt_is_scored_by_itself(tmp_path: Path) -> None:
    lines = [["case_number", "prompt", "class", "evaluation_seed"]]
    lines += [["0", "a cat skiing on a lake", "cat", "0"], ["1", "cat", "cat", "1"], ["2", "a feline", "cat", "2"]]
    lines += [["3", "a photo of a ship", "ship", "3"]]
    listed = Cifar10Paraphrase(path=written(tmp_path, lines), removed=("cat",))
    found = measured(tmp_path, listed, [0, 0, 0, 0], clip=Letters(), classifier=None).scores
    # Only the first says something besides what was removed; the third does not name it.
    assert (found["clip_score_rest"].value, found["clip_score_rest"].n) == (100.0, 1)
    assert (found["clip_score_removed"].value, found["clip_score_removed"].n) == (0.0, 3)
    assert found["clip_score_rest"].higher_is_better
    clean, both = tmp_path / "clean.csv", tmp_path / "both.csv"
    clean.write_text("case_number,evaluation_seed,prompt\n0,1,skiing on a lake\n")
    both.write_text("case_number,evaluation_seed,target,prompt\n0,1,Batman,Batman is skiing on a lake\n")
    dual = SixCdDual(clean=clean, malicious=both, removed=("Batman",))
    found = measured(tmp_path, dual, [0, 0], clip=Letters(), classifier=None).scores
    assert (found["clip_score_rest"].value, found["clip_score_rest"].n) == (100.0, 1)  # the list's own words


def test_texts_that_are_not_read_whole_are_told(tmp_path: Path) -> None:
    rows = [["case_number", "prompt", "evaluation_seed"], ["0", "a " * 80 + "cat", "0"], ["1", "a cat", "1"]]
    listed = Coco(path=written(tmp_path, rows))
    judges = PublicMetrics(benchmark=listed, clip=open_clip_judge(), classifier=None, features=None)
    picture = Image.new("RGB", (32, 32))
    judges.measure(
        {name: store_of(tmp_path, [picture] * 2, listed.pairs, name) for name in ("erased", "original")},
        lambda more: None,
    )
    [warning] = judges.warnings
    assert warning.startswith("1 of 2 texts are longer than the CLIP score's model reads")
