"""Similarity of images with a set of reference images: the mean cosine of their features over all pairs."""

from abc import ABC
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from erasure.errors import InputError

from ..features.image_features import Extractor
from ..images.conversion import Images
from ..stats.scores import Score, Setup
from .base import Metric

UNIT = "cosine"


def mean_similarity(images: Float[Tensor, "n dim"], references: Float[Tensor, "m dim"]) -> Float[Tensor, " n"]:
    """Return each image's mean cosine with all references, in [-1, 1].

    The mean of cosines is the product with the mean of the references' unit vectors, which is not a unit vector.
    """
    return F.normalize(images.double(), dim=1) @ F.normalize(references.double(), dim=1).mean(0)


@dataclass(kw_only=True)
class ReferenceSimilarity(Metric, ABC):
    """Streaming mean pairwise cosine; keeps one number an image and one vector for all references.

    Attributes:
        extractor: Feature extractor.
        reference: Description of the reference images, for the protocol.
    """

    name: ClassVar[str]

    extractor: Extractor
    reference: str = ""
    _values: list[float] = field(default_factory=list, init=False, repr=False)
    _sum: Tensor | None = field(default=None, init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def update_reference(self, images: Images) -> "ReferenceSimilarity":
        """Add reference images, all of them before the first image.

        Raises:
            InputError: Images were already compared with fewer references.
        """
        if self._values:
            raise InputError(f"{self.name}: expected all references before the first image, got more after it.")
        if len(images):
            total = F.normalize(self.extractor(images).double(), dim=1).sum(0)
            self._sum, self._count = total if self._sum is None else self._sum + total, self._count + len(images)
        return self

    def update(self, images: Images) -> "ReferenceSimilarity":
        """Add images.

        Raises:
            InputError: There are no references yet.
        """
        if self._sum is None:
            raise InputError(f"{self.name}: expected reference images first, got none. Call update_reference.")
        if len(images):
            units = F.normalize(self.extractor(images).double(), dim=1)
            self._values += (units @ (self._sum / self._count)).tolist()
        return self

    def compute(self) -> Score:
        """Return the mean over all images so far."""
        return Score.mean(self._values, unit=UNIT, higher_is_better=True, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return self.extractor.setup(self.name, reference=self.reference)
