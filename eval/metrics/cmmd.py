"""CMMD, CLIP maximum mean discrepancy (Jayasumana et al., CVPR 2024, arXiv:2401.09603)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from erasure.registry import Exactness

from .base import Feed
from .mmd import KernelDistance, unbiased_mmd2

SIGMA = 10.0  # section 4
SCALE = 1000.0  # section 4: for readable numbers


def gaussian_kernel(
    x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"], sigma: float | int = SIGMA
) -> Float[Tensor, "a b"]:
    """Return exp(-|x - y|^2 / (2 sigma^2)) of each pair of rows."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :] - 2 * x @ y.T
    return torch.exp(-squares.clamp_min(0) / (2 * sigma**2))


def cmmd(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> float:
    """Return 1000 x the unbiased squared discrepancy of two sets of CLIP features, scaled to unit length.

    Differs from the paper: its code takes the biased estimate, which is above 0 for equal distributions.

    Raises:
        InputError: A set has fewer than two rows.
    """
    return SCALE * unbiased_mmd2(F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1), gaussian_kernel)


@dataclass(kw_only=True)
class Cmmd(KernelDistance):
    """Streaming CMMD; the paper's extractor is "clip:ViT-L-14-336:openai"."""

    name: ClassVar[str] = "cmmd"
    source: ClassVar[str] = "arXiv:2401.09603"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "reference"
    unit: ClassVar[str] = "CMMD"
    scale: ClassVar[float] = SCALE

    def prepared(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        return F.normalize(rows, dim=1)

    def kernel(self, x: Float[Tensor, "a dim"], y: Float[Tensor, "b dim"]) -> Float[Tensor, "a b"]:
        return gaussian_kernel(x, y)
