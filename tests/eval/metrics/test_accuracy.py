"""Accuracy by class index: torchvision's, transformers' and the oracle."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.metrics.accuracy import (
    IMAGENETTE,
    Accuracy,
    ImageNetClassifier,
    OracleClassifier,
    hub_classifier,
    resnet50,
    top_k_hits,
)
from erasure.eval.stats.scores import wilson
from erasure.judge import Judge
from erasure.tinyworld.world import compose, draw

from .tiny_judges import pictures, seeded


def test_top_k_of_known_logits() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 5.0, 5.0]])
    labels = torch.tensor([0, 1, 1])
    assert top_k_hits(logits, labels).tolist() == [True, False, False]  # a tie is no hit
    assert top_k_hits(logits, labels, k=2).tolist() == [True, True, True]


def test_imagenette_has_imagenets_numbers() -> None:
    from torchvision.models import ResNet50_Weights

    names = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert {name: names[index] for name, index in IMAGENETTE.items()} == {name: name for name in IMAGENETTE}


class Colours(torch.nn.Module):
    """Three classes: the mean of red, green and blue."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) * self.scale


def _colours(classes: tuple[str, ...] = ("Red thing", "green thing", "blue thing"), k: int = 1) -> ImageNetClassifier:
    from torchvision.transforms._presets import ImageClassification

    preprocess = ImageClassification(crop_size=8, resize_size=10, mean=(0, 0, 0), std=(1, 1, 1))
    return ImageNetClassifier(Colours(), preprocess, classes, "colours", k)


def _plain(*colours: str) -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), colour) for colour in colours]


def test_the_spelling_of_a_label_changes_nothing() -> None:
    # The trap: "english springer" never equals "English springer", and every picture is a miss.
    images, labels = _plain("red", "lime", "blue", "red"), [0, 1, 2, 1]
    found = {
        spelling: Accuracy(classifier=_colours(classes)).update(images, labels).compute().value
        for spelling, classes in {
            "as is": ("Red thing", "green thing", "blue thing"),
            "lower": ("red thing", "green thing", "blue thing"),
            "alike": ("thing", "thing", "thing"),
        }.items()
    }
    assert set(found.values()) == {0.75}


@pytest.mark.parametrize("labels", [["Red thing"], [3], [-1], [True], [0.0], [np.float64(1)], []])
def test_what_is_no_index_of_a_class_is_refused(labels: list[Any]) -> None:
    with pytest.raises(InputError, match="class ind"):
        Accuracy(classifier=_colours()).update(_plain("red"), labels)


def test_it_streams_and_a_last_batch_of_one_changes_no_mean() -> None:
    images, labels = _plain("red", "lime", "blue", "red", "lime"), np.array([0, 1, 2, 1, 0])
    whole = Accuracy(classifier=_colours()).update(images, labels).compute()
    parts = Accuracy(classifier=_colours()).update(images[:4], labels[:4]).update(images[4:], labels[4:]).compute()
    assert whole == parts
    assert (whole.value, whole.n, whole.per_image) == (0.6, 5, (1.0, 1.0, 1.0, 0.0, 0.0))
    assert whole.interval == wilson(3, 5)
    assert whole.setup is not None
    assert whole.setup.metric == "accuracy_top1"
    assert whole.setup.resize == "bilinear, antialias, 10, centre 8"
    assert Accuracy(classifier=_colours(k=2)).setup.metric == "accuracy_top2"


def test_float_and_uint8_pictures_give_the_same() -> None:
    images = pictures(6)
    array = np.stack([np.asarray(image) for image in images])
    labels = [0, 1, 2, 0, 1, 2]
    whole = Accuracy(classifier=_colours()).update(images, labels).compute()
    assert Accuracy(classifier=_colours()).update(array / 255, labels).compute() == whole


def test_a_classifier_is_a_judge_of_its_classes() -> None:
    judge, images = _colours(), _plain("red", "lime", "blue")
    assert isinstance(judge, Judge)
    assert judge.knows("green thing")
    assert not judge.knows("grey thing")
    assert judge.shows(images, "green thing") == [False, True, False]
    assert torch.equal(judge.probabilities(images, "green thing"), judge.logits(images).softmax(1)[:, 1])
    assert torch.equal(judge.features(images), judge.logits(images))


def test_two_classes_of_one_name_are_told_apart() -> None:
    assert _colours(("crane", "thing", "crane")).classes == ("crane", "thing", "crane (2)")


def test_a_classifier_of_transformers(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        id2label={0: "one", 1: "two", 2: "three"},
    )
    seeded(lambda: ViTForImageClassification(config)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    classifier = hub_classifier(str(tmp_path))
    assert classifier.classes == ("one", "two", "three")
    images = pictures(6)
    labels = classifier.logits(images).argmax(1)
    assert Accuracy(classifier=classifier).update(images, labels.numpy()).compute().value == 1
    assert Accuracy(classifier=classifier).update(images, ((labels + 1) % 3).numpy()).compute().value == 0


def test_the_oracle_knows_its_world() -> None:
    classifier = OracleClassifier(tinyworld.load_oracle())
    cat, house = (classifier.classes.index(name) for name in ("cat", "house"))
    images = [draw(compose([name], random.Random(f"{name}{i}"))) for name in ("cat", "house") for i in range(6)]
    right = Accuracy(classifier=classifier).update(images, [cat] * 6 + [house] * 6).compute()
    wrong = Accuracy(classifier=classifier).update(images, [house] * 6 + [cat] * 6).compute()
    assert right.value > 0.8
    assert wrong.value < 0.2
    assert right.setup is not None
    assert right.setup.backbone.startswith("tinyworld-oracle ")  # and a digest of its weights


def test_missing_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="resnet50") as caught:
        resnet50()
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingWeightsError, match="hf download nobody/nothing-here"):
        hub_classifier("nobody/nothing-here")


def test_the_network_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.auto import auto_factory

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(auto_factory, "find_adapter_config_file", lambda source, **options: asked.append(options))
    with pytest.raises(MissingWeightsError):
        hub_classifier("nobody/nothing-here")
    assert [options["local_files_only"] for options in asked] == [True]


def test_resnet50_at_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet50_Weights
    from torchvision.models import resnet50 as build

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(ResNet50_Weights.IMAGENET1K_V2.url).name
    file.parent.mkdir(parents=True)
    net = seeded(build)
    torch.save(net.state_dict(), file)
    classifier = resnet50()
    images = pictures(2)
    pixels = torch.stack([ResNet50_Weights.IMAGENET1K_V2.transforms()(image) for image in images])
    with torch.no_grad():
        torch.testing.assert_close(classifier.logits(images), net.eval()(pixels))
    assert len(classifier.classes) == 1000
    assert classifier.setup("accuracy").resize == "bilinear, antialias, 232, centre 224"


@pytest.mark.weights
def test_real_weights_give_a_thousand_classes() -> None:
    try:
        classifier = resnet50()
    except MissingWeightsError as error:
        pytest.skip(str(error))
    # Coloured noise is no dog.
    assert classifier.logits(pictures(1, size=256)).argmax() != IMAGENETTE["English springer"]
