"""Accuracy: the share of pictures that a classifier takes for what was asked for, by class index.

ESD's and UCE's object tables have it (arXiv:2303.07345, arXiv:2308.14761), by ResNet-50.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from erasure.concept import normalized
from erasure.errors import InputError, MissingExtraError
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.oracle import Oracle
from erasure.tinyworld.vocabulary import SCENES, STYLES

from ..features.image_features import processed
from ..features.weights import from_hub, from_url, model_from_hub, oracle_name
from ..images.conversion import Images, as_pil
from ..stats.scores import Score, Setup
from .labels import as_indices

IMAGENETTE: Final[Mapping[str, int]] = MappingProxyType(
    {
        "tench": 0,
        "English springer": 217,
        "cassette player": 482,
        "chain saw": 491,
        "church": 497,
        "French horn": 566,
        "garbage truck": 569,
        "gas pump": 571,
        "golf ball": 574,
        "parachute": 701,
    }
)
"""Imagenette's ten classes, as ImageNet-1k numbers them."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a classifier makes of some pictures, each asked whether it shows a class.

    Attributes:
        hits: Whether each is taken for its class.
        probability: How likely that is to the classifier, in [0, 1].
    """

    hits: Bool[Tensor, " n"]
    probability: Float[Tensor, " n"]

    @classmethod
    def of(cls, logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int = 1) -> "Look":
        """Return that of a classifier that chooses between its classes."""
        right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return cls(hits=top_k_hits(logits, labels, k), probability=right)


@runtime_checkable
class Classifier(Protocol):
    """Says of pictures whether each shows a class."""

    @property
    def classes(self) -> Sequence[str]:
        """What each index stands for; for reports, never for comparison."""
        ...

    def look(self, images: Images, labels: Int[Tensor, " n"], /) -> Look:
        """Look at pictures, each for its class."""
        ...

    def setup(self, metric: str) -> Setup:
        """Return the protocol of a metric over this classifier."""
        ...


def check_classes(classifier: Classifier, classes: Mapping[str, int], where: str) -> None:
    """Check that a classifier has some classes at their places.

    An index alone says nothing: the third class of CIFAR-10 is the cat, of ImageNet the tiger shark. A label may hold
    several names of a class, with commas between ("tench, Tinca tinca").

    Args:
        classifier: Who is to judge.
        classes: Names with their indices.
        where: What has these classes, for the error.

    Raises:
        InputError: A class has another name there, or none.
    """
    for name, index in classes.items():
        label = classifier.classes[index] if index < len(classifier.classes) else None
        if label is None or normalized(name) not in map(normalized, (label, *label.split(","))):
            raise InputError(
                f"{where}: expected a classifier whose class {index} is {name!r}, got one that calls it {label!r}."
                " Name another: --classifier."
            )


def top_k_hits(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int = 1) -> Bool[Tensor, " n"]:
    """Return whether fewer than k classes score at least as high as the right one; a tie is no hit."""
    right = logits.gather(1, labels[:, None])
    return (logits >= right).sum(1) - 1 < k


@dataclass(kw_only=True)
class Accuracy:
    """Streaming accuracy; keeps one truth value a picture.

    Attributes:
        classifier: Who looks.
    """

    name: ClassVar[str] = "accuracy"

    classifier: Classifier
    _hits: list[bool] = field(default_factory=list, init=False, repr=False)

    def update(self, images: Images, labels: Sequence[Any] | np.ndarray) -> "Accuracy":
        """Add pictures, each with the index of its class.

        Raises:
            InputError: There are not as many labels as pictures, or one is no class index; texts are never matched.
        """
        indices = as_indices(labels, len(images), len(self.classifier.classes), self.name)
        if len(indices):
            self._hits += self.classifier.look(images, indices).hits.tolist()
        return self

    def compute(self) -> Score:
        """Return the share over all pictures so far, with its Wilson interval."""
        claims = np.array(self._hits, dtype=bool)
        return Score.share(claims, unit="share", higher_is_better=True, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """What is measured."""
        return self.classifier.setup(self.name)


def resnet50(*, device: str = "cpu", download: bool = False) -> "ImageNetClassifier":
    """Return torchvision's ResNet-50 with its second ImageNet-1k weights and their own preprocessing.

    Raises:
        MissingExtraError: torchvision is not installed.
        MissingWeightsError: The weights are not in the local cache and may not or cannot be downloaded.
    """
    try:
        from torchvision.models import ResNet50_Weights
        from torchvision.models import resnet50 as build
    except ImportError as error:
        raise MissingExtraError(
            "resnet50: expected the package torchvision, got none. Install erasure[eval]."
        ) from error
    weights = ResNet50_Weights.IMAGENET1K_V2
    file = from_url(weights.url, "resnet50", download=download)
    net = build()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return ImageNetClassifier(
        net.to(device), weights.transforms(), tuple(weights.meta["categories"]), "ResNet-50, IMAGENET1K_V2"
    )


class ImageNetClassifier:
    """A classifier of torchvision.

    Attributes:
        net: Pixels to logits.
        preprocess: PIL to pixels.
        classes: What each index stands for.
        backbone: Model and weights.
        k: How many best classes count; 1 is the published accuracy.
    """

    def __init__(
        self, net: torch.nn.Module, preprocess: Any, classes: tuple[str, ...], backbone: str, k: int = 1
    ) -> None:
        self.net, self.preprocess, self.classes, self.backbone, self.k = net.eval(), preprocess, classes, backbone, k

    @torch.no_grad()
    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the scores of all classes."""
        device = next(self.net.parameters()).device
        return self.net(torch.stack([self.preprocess(picture) for picture in as_pil(images)]).to(device)).float().cpu()

    def look(self, images: Images, labels: Int[Tensor, " n"], /) -> Look:
        return Look.of(self.logits(images), labels, self.k)

    def setup(self, metric: str) -> Setup:
        crop, resize = self.preprocess.crop_size[0], self.preprocess.resize_size[0]
        return Setup(
            metric=f"{metric}_top{self.k}",
            library=f"torchvision {version('torchvision')}",
            backbone=self.backbone,
            resize=f"{self.preprocess.interpolation.value}, antialias, {resize}, centre {crop}",
        )


def hub_classifier(source: str, *, device: str = "cpu", download: bool = False) -> "HubClassifier":
    """Return an image classifier of the Hub with its own processor.

    Raises:
        MissingWeightsError: It is not in the local cache and may not or cannot be downloaded.
        InputError: The checkpoint lacks weights of its model, such as a head.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = model_from_hub(AutoModelForImageClassification, source, source, download=download)
    processor = from_hub(AutoImageProcessor.from_pretrained, source, source, download=download)
    return HubClassifier(model.to(device), processor, source)


class HubClassifier:
    """An image classifier of transformers.

    Attributes:
        model: Pixels to logits.
        processor: Its image processor.
        source: Where the weights came from.
        classes: What each index stands for.
        k: How many best classes count.
    """

    def __init__(self, model: Any, processor: Any, source: str, k: int = 1) -> None:
        self.model, self.processor, self.source, self.k = model.eval(), processor, source, k
        names = model.config.id2label
        self.classes = tuple(names[index] for index in range(model.config.num_labels))

    @torch.no_grad()
    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the scores of all classes."""
        inputs = self.processor(images=as_pil(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs).logits.float().cpu()

    def look(self, images: Images, labels: Int[Tensor, " n"], /) -> Look:
        return Look.of(self.logits(images), labels, self.k)

    def setup(self, metric: str) -> Setup:
        return Setup(
            metric=f"{metric}_top{self.k}",
            library=f"transformers {version('transformers')}",
            backbone=self.source,
            resize=processed(self.processor),
        )


@dataclass(frozen=True)
class OracleClassifier:
    """The tiny world's oracle as a classifier of things, styles and scenes.

    Things are not exclusive: a picture of a cat and a dog is a hit for both.

    Attributes:
        oracle: Who looks.
    """

    classes: ClassVar[tuple[str, ...]] = (*THINGS, *STYLES, *SCENES)

    oracle: Oracle

    def look(self, images: Images, labels: Int[Tensor, " n"], /) -> Look:
        reading = self.oracle.read(as_pil(images))
        named = list(enumerate(self.classes[label] for label in labels.tolist()))
        return Look(
            hits=torch.tensor([bool(reading.sees(name)[row]) for row, name in named], dtype=torch.bool),
            probability=torch.tensor([float(reading.probability(name)[row]) for row, name in named]),
        )

    def setup(self, metric: str) -> Setup:
        return Setup(metric=metric, backbone=oracle_name(self.oracle))
