"""Accuracy: the share of images that a classifier assigns to the class asked for, by class index.

ESD's and UCE's object tables have it (arXiv:2303.07345, arXiv:2308.14761), by ResNet-50.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel

from erasure.arguments import checks_arguments
from erasure.concept import normalized
from erasure.errors import InputError, MissingExtraError
from erasure.judge import Judge, ReadOnce, shows_each
from erasure.registry import Exactness
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.oracle import Oracle
from erasure.tinyworld.vocabulary import SCENES, STYLES

from ..features.image_features import HubImageProcessor, processed
from ..features.weights import from_hub, from_url, model_from_hub, oracle_name
from ..images.conversion import Images, as_pil
from ..stats.scores import Score, Setup
from .base import Feed, Metric
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


@runtime_checkable
class Classifier(Judge, Protocol):
    """Judge of a numbered list of classes; the concepts that it knows are their names."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of the class of each index; each name occurs once."""
        ...

    def setup(self, metric: str) -> Setup:
        """Return the protocol of a metric over this classifier."""
        ...


@checks_arguments
class ClassifierJudge(ABC):
    """Network that chooses between classes, as a judge.

    Attributes:
        classes: Name of the class of each index; a name that occurs again has its index behind it.
        k: Number of best classes that count as shown; 1 is the published accuracy.
    """

    def __init__(self, classes: Sequence[str], k: int) -> None:
        first = {name: classes.index(name) for name in classes}
        self.classes = tuple(name if first[name] == i else f"{name} ({i})" for i, name in enumerate(classes))
        self.k = k
        self._logits = ReadOnce(self.logits)

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the judge."""

    @abstractmethod
    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        """Return the logits of all classes."""

    def knows(self, concept: str) -> bool:
        return concept in self.classes

    def probabilities(self, images: Sequence[Image], concept: str) -> Float[Tensor, " n"]:
        return self._logits(images).softmax(1)[:, self.classes.index(concept)]

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        logits = self._logits(images)
        return top_k_hits(logits, torch.full((len(logits),), self.classes.index(concept)), self.k).tolist()

    def features(self, images: Sequence[Image]) -> Float[Tensor, "n classes"]:
        """Return the logits, a vector for each image."""
        return self._logits(images)


@checks_arguments
def check_classes(classifier: Classifier, classes: Mapping[str, int], where: str) -> None:
    """Check that a classifier has some classes at their places.

    An index alone says nothing: the third class of CIFAR-10 is the cat, of ImageNet the tiger shark. A label may hold
    several names of a class, with commas between ("tench, Tinca tinca").

    Args:
        classifier: Classifier to check.
        classes: Index of each class, by name.
        where: Owner of these classes, for the error.

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
    """Return True for each image whose right class is among the k best; a tie counts as a miss."""
    right = logits.gather(1, labels[:, None])
    return (logits >= right).sum(1) - 1 < k


@dataclass(kw_only=True)
class Accuracy(Metric):
    """Streaming accuracy; keeps one truth value an image.

    Attributes:
        classifier: Classifier of the images.
    """

    name: ClassVar[str] = "accuracy"
    source: ClassVar[str] = "arXiv:2303.07345"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "labels"

    classifier: Classifier
    _hits: list[bool] = field(default_factory=list, init=False, repr=False)

    def update(self, images: Images, labels: Sequence[Any] | np.ndarray) -> "Accuracy":
        """Add images, each with the index of its class.

        Raises:
            InputError: The numbers of labels and images differ, or a label is no class index; texts are never matched.
        """
        indices = as_indices(labels, len(images), len(self.classifier.classes), self.name)
        if len(indices):
            names = [self.classifier.classes[index] for index in indices.tolist()]
            self._hits += shows_each(self.classifier, as_pil(images), names)
        return self

    def compute(self) -> Score:
        """Return the share over all images so far, with its Wilson interval."""
        claims = np.array(self._hits, dtype=bool)
        return Score.share(claims, unit="share", higher_is_better=True, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the score."""
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


@runtime_checkable
class ClassificationPreset(Protocol):
    """The preprocessing of torchvision's classifiers.

    Attributes:
        resize_size: Length of the shorter edge after the resize, in pixels.
        crop_size: Length of an edge of the centre crop, in pixels.
        interpolation: Interpolation of the resize.
    """

    resize_size: list[int]
    crop_size: list[int]
    interpolation: Enum

    def __call__(self, image: Image, /) -> Tensor:
        """Return the normalised pixels of an image."""
        ...


@checks_arguments
class ImageNetClassifier(ClassifierJudge):
    """A classifier of torchvision.

    Attributes:
        net: Pixels to logits.
        preprocess: PIL to pixels.
        backbone: Name of model and weights.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        preprocess: ClassificationPreset,
        classes: tuple[str, ...],
        backbone: str,
        k: int = 1,
    ) -> None:
        super().__init__(classes, k)
        self.net, self.preprocess, self.backbone = net.eval(), preprocess, backbone

    @property
    def name(self) -> str:
        return self.backbone

    @torch.no_grad()
    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        device = next(self.net.parameters()).device
        return self.net(torch.stack([self.preprocess(image) for image in as_pil(images)]).to(device)).float().cpu()

    def setup(self, metric: str) -> Setup:
        crop, resize = self.preprocess.crop_size[0], self.preprocess.resize_size[0]
        return Setup(
            metric=f"{metric}_top{self.k}",
            library=f"torchvision {version('torchvision')}",
            backbone=self.backbone,
            resize=f"{self.preprocess.interpolation.value}, antialias, {resize}, centre {crop}",
        )


@checks_arguments
def hub_classifier(source: str, *, device: str = "cpu", download: bool = False) -> "HubClassifier":
    """Return an image classifier of the Hub with its own processor.

    Raises:
        MissingWeightsError: It is not in the local cache and may not or cannot be downloaded.
        InputError: The checkpoint lacks weights of its model, such as a head.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = model_from_hub(AutoModelForImageClassification, source, source, download=download, device=device)
    processor = from_hub(AutoImageProcessor.from_pretrained, source, source, download=download)
    return HubClassifier(model, processor, source)


@checks_arguments
class HubClassifier(ClassifierJudge):
    """An image classifier of transformers.

    Attributes:
        model: Pixels to logits.
        processor: Its image processor.
        source: Repository or folder of the weights.
    """

    def __init__(self, model: PreTrainedModel, processor: HubImageProcessor, source: str, k: int = 1) -> None:
        super().__init__([label for _, label in sorted((model.config.id2label or {}).items())], k)
        self.model, self.processor, self.source = model.eval(), processor, source

    @property
    def name(self) -> str:
        return self.source

    @torch.no_grad()
    def logits(self, images: Images) -> Float[Tensor, "n classes"]:
        inputs = self.processor(images=as_pil(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs).logits.float().cpu()

    def setup(self, metric: str) -> Setup:
        return Setup(
            metric=f"{metric}_top{self.k}",
            library=f"transformers {version('transformers')}",
            backbone=self.source,
            resize=processed(self.processor),
        )


@checks_arguments
@dataclass(frozen=True)
class OracleClassifier:
    """The tiny world's oracle as a classifier of things, styles and scenes.

    Things are not exclusive: an image of a cat and a dog is a hit for both.

    Attributes:
        oracle: The oracle.
    """

    classes: ClassVar[tuple[str, ...]] = (*THINGS, *STYLES, *SCENES)

    oracle: Oracle

    @property
    def name(self) -> str:
        return self.oracle.name

    def knows(self, concept: str) -> bool:
        return self.oracle.knows(concept)

    def probabilities(self, images: Sequence[Image], concept: str) -> Float[Tensor, " n"]:
        return self.oracle.probabilities(images, concept)

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        return self.oracle.shows(images, concept)

    def features(self, images: Sequence[Image]) -> Float[Tensor, "n dim"]:
        return self.oracle.features(images)

    def setup(self, metric: str) -> Setup:
        return Setup(metric=metric, backbone=oracle_name(self.oracle))
