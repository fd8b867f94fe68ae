"""Maximum mean discrepancy between two sets of features: unbiased, with a bootstrap over the images.

Gretton et al., JMLR 2012 (lemma 6, the unbiased estimate of the squared discrepancy). KID and CMMD are instances with
different kernels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError

from ..features.image_features import Extractor, Features, as_rows
from ..images.conversion import Images
from ..stats.scores import Setup
from .base import Metric
from .distances import SetDistance

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Function of rows (a, dim) and rows (b, dim) that returns their values (a, b)."""

BLOCK = 1024
"""Number of rows of a kernel matrix in memory at once."""


def unbiased_mmd2(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], kernel: Kernel) -> float:
    """Return the unbiased estimate of the squared discrepancy; for equal distributions half of all draws are negative.

        mean of k(x_i, x_j), i != j  +  mean of k(y_i, y_j), i != j  -  2 mean of k(x_i, y_j)

    Raises:
        InputError: A set has fewer than two rows.
    """
    ones = (torch.ones(1, len(rows), dtype=torch.float64) for rows in (x, y))
    return float(weighted_mmd2(x, y, kernel, *ones))


def mmd2_with_draws(
    x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], kernel: Kernel, *, resamples: int, seed: int
) -> tuple[float, Float[Tensor, " resamples"]]:
    """Return the unbiased estimate, and its bootstrap draws over the rows of both sets.

    A row drawn twice forms no pair with itself: such pairs would bias every draw upwards. For equal distributions the
    draws spread wider than the estimate, so their interval is conservative.

    Raises:
        InputError: A set has fewer than two rows.
    """
    _check(len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    weights = (
        torch.stack([torch.ones(len(rows)).double(), *(_counts(len(rows), generator) for _ in range(resamples))])
        for rows in (x, y)
    )
    estimate, *draws = weighted_mmd2(x, y, kernel, *weights)  # one pass over the pairs
    return float(estimate), torch.stack(draws)


def weighted_mmd2(
    x: Float[Tensor, "n dim"],
    y: Float[Tensor, "m dim"],
    kernel: Kernel,
    x_weights: Float[Tensor, "b n"],
    y_weights: Float[Tensor, "b m"],
) -> Float[Tensor, " b"]:
    """Return the unbiased estimate for each of b weightings of the rows, in float64.

    Pairs of different rows have weight w_i w_j; a row forms no pair with itself. Memory grows with n + m, not with n m.

    Raises:
        InputError: A set has fewer than two rows.
    """
    _check(len(x), len(y))
    return (
        _within(x.double(), kernel, x_weights.double())
        + _within(y.double(), kernel, y_weights.double())
        - 2 * _between(x.double(), y.double(), kernel, x_weights.double(), y_weights.double())
    )


def _check(*counts: int) -> None:
    for n in counts:
        if n < 2:
            raise InputError(f"mmd: expected at least 2 images in each set, got {n}. Give more images.")


def _within(rows: Tensor, kernel: Kernel, weights: Tensor) -> Tensor:
    diagonal = torch.cat([kernel(block, block).diagonal() for block in rows.split(BLOCK)])
    squares = weights.square()
    return (_form(rows, rows, kernel, weights, weights) - squares @ diagonal) / (
        weights.sum(1).square() - squares.sum(1)
    )


def _between(x: Tensor, y: Tensor, kernel: Kernel, x_weights: Tensor, y_weights: Tensor) -> Tensor:
    return _form(x, y, kernel, x_weights, y_weights) / (x_weights.sum(1) * y_weights.sum(1))


def _form(x: Tensor, y: Tensor, kernel: Kernel, x_weights: Tensor, y_weights: Tensor) -> Tensor:
    total = torch.zeros(len(x_weights), dtype=torch.float64)
    for rows, weights in zip(x.split(BLOCK), x_weights.split(BLOCK, dim=1), strict=True):
        total += (weights * (kernel(rows, y) @ y_weights.T).T).sum(1)
    return total


def _counts(n: int, generator: torch.Generator) -> Tensor:
    while True:  # one row drawn n times forms no pair, which happens in tiny sets
        counts = torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n)
        if int(counts.max()) < n:
            return counts.double()


@dataclass(kw_only=True)
class KernelDistance(Metric, ABC):
    """A streaming discrepancy of two sets of images under one kernel.

    It keeps the features of every image (8 KB for Inception), because an estimate over pairs needs all of them.

    Attributes:
        extractor: Feature extractor.
        reference: Description of the reference set, for the protocol.
        resamples: Number of bootstrap draws for the interval, >= 2.
        seed: Seed of the bootstrap.

    Raises:
        InputError: There are too few draws for an interval.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    scale: ClassVar[float]

    extractor: Extractor
    reference: str = ""
    resamples: int = 500
    seed: int = 0
    _features: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.resamples < 2:
            raise InputError(f"{self.name}.resamples: expected at least 2, got {self.resamples!r}.")

    def update(self, images: Images) -> "KernelDistance":
        """Add images of the judged set."""
        return self.update_features(self.extractor(images))

    def update_reference(self, images: Images) -> "KernelDistance":
        """Add images of the reference set."""
        return self.update_features(self.extractor(images), reference=True)

    def update_features(self, features: Features, *, reference: bool = False) -> "KernelDistance":
        """Add features (n, dim) of the same extractor."""
        self._features[reference].append(self.prepared(as_rows(features)))
        return self

    def compute(self) -> SetDistance:
        """Return the distance of all images so far, with the 95 % percentile interval of the draws.

        Under KID's cubic kernel in one dimension, where the estimate is most skewed, the intervals covered the true
        value in 87 % of 300 trials with 60 images, and in 92 % with 400 images.

        Raises:
            InputError: A set has fewer than two images.
        """
        x, y = self.rows
        estimate, drawn = mmd2_with_draws(x, y, self.kernel, resamples=self.resamples, seed=self.seed)
        draws = self.scale * drawn.numpy()
        low, high = np.quantile(draws, (0.025, 0.975)).tolist()
        return SetDistance(
            value=self.scale * estimate,
            n=len(x),
            reference_n=len(y),
            standard_error=float(draws.std(ddof=1)),
            interval=(low, high),
            unit=self.unit,
            higher_is_better=False,
            setup=self.setup,
        )

    @property
    def rows(self) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "m dim"]]:
        """Features of the judged and of the reference set.

        Raises:
            InputError: A set has fewer than two images.
        """
        _check(*(sum(map(len, parts)) for parts in self._features))
        judged, reference = (torch.cat(parts) for parts in self._features)
        return judged, reference

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return self.extractor.setup(self.name, reference=self.reference)

    def prepared(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Return the features in the form that the kernel takes."""
        return rows

    @abstractmethod
    def kernel(self, x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
        """Return the value of each pair of rows."""
