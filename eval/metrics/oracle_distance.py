"""Oracle distance: distance of the oracle's features of two images of the tiny world, layer by layer.

The tiny world's counterpart of LPIPS (Zhang et al., CVPR 2018), on the oracle's feature maps and without weights
fitted to human judgement, which exist for photographs only. It is not comparable with LPIPS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from erasure.errors import InputError
from erasure.registry import Exactness
from erasure.tinyworld.oracle import Oracle, Pictures, as_pixels

from ..features.weights import oracle_name
from ..stats.scores import Score, Setup
from .base import Feed, Metric

UNIT = "oracle distance"


def oracle_distance_map(
    before: Sequence[Float[Tensor, "n _ _ _"]], after: Sequence[Float[Tensor, "n _ _ _"]], size: int
) -> Float[Tensor, "n size size"]:
    """Return the distance at each pixel: the mean over layers of |f/|f| - g/|g||^2, each layer resized to `size`.

    Args:
        before: Feature maps of the original's images, one tensor (n, channels, rows, columns) a layer.
        after: Feature maps of the other model's images, in the same order.
        size: Rows and columns of the result.

    Returns:
        Distances in [0, 4]: 0 for parallel features, 2 for orthogonal ones.
    """
    layers = []
    for one, other in zip(before, after, strict=True):
        difference = (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1, keepdim=True)
        layers.append(F.interpolate(difference, size=(size, size), mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(layers).mean(0)


def oracle_distance(
    before: Sequence[Float[Tensor, "n _ _ _"]], after: Sequence[Float[Tensor, "n _ _ _"]]
) -> Float[Tensor, " n"]:
    """Return the distance of each pair of images: the mean over positions in each layer, then the mean over layers."""
    layers = [
        (F.normalize(one, dim=1) - F.normalize(other, dim=1)).square().sum(1).mean((1, 2))
        for one, other in zip(before, after, strict=True)
    ]
    return torch.stack(layers).mean(0)


@dataclass(kw_only=True)
class OracleDistance(Metric):
    """Streaming oracle distance between paired images; keeps one number a pair.

    Attributes:
        oracle: Oracle whose features are compared.
        batch_size: Number of pairs in a batch.
        reference: Description of `before`, for the protocol.
    """

    name: ClassVar[str] = "oracle_distance"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    feed: ClassVar[Feed] = "before"

    oracle: Oracle
    batch_size: int = 64
    reference: str = ""
    _values: list[float] = field(default_factory=list, init=False, repr=False)

    def update(self, before: Pictures, after: Pictures) -> "OracleDistance":
        """Add pairs of images.

        Raises:
            InputError: The numbers of images differ.
        """
        self._values.extend(self._each(before, after, oracle_distance).tolist())
        return self

    def maps(self, before: Pictures, after: Pictures) -> Float[Tensor, "n 64 64"]:
        """Return the distance at each pixel of each pair, without adding it to the mean."""
        return self._each(before, after, lambda one, other: oracle_distance_map(one, other, 64))

    def compute(self) -> Score:
        """Return the mean over all pairs so far."""
        return Score.mean(self._values, unit=UNIT, higher_is_better=False, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return Setup(metric=self.name, backbone=oracle_name(self.oracle), reference=self.reference)

    @torch.no_grad()
    def _each(
        self, before: Pictures, after: Pictures, measure: Callable[[list[Tensor], list[Tensor]], Tensor]
    ) -> Tensor:
        if len(before) != len(after) or not len(before):
            raise InputError(
                f"oracle_distance: expected pairs of images, got {len(before)} and {len(after)}."
                " Give the images of both models for the same prompts and seeds."
            )
        return torch.cat(
            [
                measure(*(self._features(p[start : start + self.batch_size]) for p in (before, after)))
                for start in range(0, len(before), self.batch_size)
            ]
        ).cpu()

    def _features(self, images: Pictures) -> list[Tensor]:
        return self.oracle.net.maps(as_pixels(images).to(self.oracle.device))
