"""Identity: similarity of images with a named individual of the tiny world, by the oracle's features.

The tiny world's counterpart of the face and DINO similarities used for people and instances elsewhere.
"""

import random
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from erasure.errors import unknown_name
from erasure.registry import Exactness
from erasure.tinyworld.oracle import Oracle, Pictures
from erasure.tinyworld.vocabulary import INDIVIDUALS, SCENES, article
from erasure.tinyworld.world import compose, draw

from ..features.weights import oracle_name
from ..stats.scores import Score, Setup
from .base import Feed, Metric

UNIT = "cosine"
DRAWINGS = 48
"""Number of drawings of an individual that its features are averaged over."""


def mean_direction(features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " dim"]:
    """Return the normalised mean of the features, each scaled to unit length first."""
    units = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    mean = units.mean(0)
    return mean / np.linalg.norm(mean)


def identity(features: Float[np.ndarray, "n dim"], reference: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " n"]:
    """Return the cosine of each feature row with a reference of unit length, in [-1, 1]."""
    rows = features.astype(np.float64)
    return rows @ reference / np.linalg.norm(rows, axis=1)


@dataclass(kw_only=True)
class Identity(Metric):
    """Streaming identity score of one individual; keeps one number an image.

    The mean features of ordinary members of its class are subtracted from both sides, because features that all dogs
    share do not identify a dog.

    Attributes:
        oracle: Oracle whose features are compared.
        individual: Name of the individual, from `vocabulary.INDIVIDUALS`.

    Raises:
        UnknownNameError: There is no such individual.
    """

    name: ClassVar[str] = "identity"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    feed: ClassVar[Feed] = "images"

    oracle: Oracle
    individual: str
    _values: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.individual not in INDIVIDUALS:
            raise unknown_name("individual", self.individual, tuple(INDIVIDUALS))
        drawings, others = (self._drawn(name) for name in (self.individual, INDIVIDUALS[self.individual]))
        self._class = others.mean(0)
        self._reference = mean_direction(drawings - self._class)

    def update(self, images: Pictures) -> "Identity":
        """Add images."""
        self._values.extend(self.of(self.oracle.read(images).features).tolist())
        return self

    def of(self, features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
        """Return the score of each image by its oracle features, without adding it to the mean."""
        return identity(features - self._class, self._reference)

    def compute(self) -> Score:
        """Return the mean over all images so far: near 1 for the individual, near 0 for others of its class."""
        return Score.mean(self._values, unit=UNIT, higher_is_better=True, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        kind = article(INDIVIDUALS[self.individual])
        return identity_setup(self.oracle, f"{DRAWINGS} drawings of {self.individual}, less as many of {kind}")

    def _drawn(self, name: str) -> Float[np.ndarray, "n dim"]:
        rng = random.Random(f"identity:{name}")
        images = [draw(compose([name], rng, scene=SCENES[i % len(SCENES)])) for i in range(DRAWINGS)]
        return self.oracle.read(images).features


def identity_setup(oracle: Oracle, reference: str) -> Setup:
    """Return the protocol of a score against the drawings of an individual."""
    return Setup(metric=Identity.name, backbone=oracle_name(oracle), reference=reference)
