"""KID, kernel Inception distance (Binkowski et al., ICLR 2018, arXiv:1801.01401)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from erasure.registry import Exactness

from .base import Feed
from .mmd import KernelDistance, unbiased_mmd2


def polynomial_kernel(x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
    """Return (x . y / dim + 1)^3 of each pair of rows."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> float:
    """Return the unbiased squared discrepancy under the cubic kernel; it scatters around 0 for equal distributions.

    Raises:
        InputError: A set has fewer than two rows.
    """
    return unbiased_mmd2(x, y, polynomial_kernel)


@dataclass(kw_only=True)
class Kid(KernelDistance):
    """Streaming KID.

    Differs from the paper: one estimate over all pairs of images with a bootstrap interval over images, instead of a
    mean over random subsets, whose spread depends on the number of subsets and not on the number of images.
    """

    name: ClassVar[str] = "kid"
    source: ClassVar[str] = "arXiv:1801.01401"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "reference"
    unit: ClassVar[str] = "KID"
    scale: ClassVar[float] = 1.0

    def kernel(self, x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
        return polynomial_kernel(x, y)
