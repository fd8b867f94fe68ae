"""Losses between a point to approach and a point to leave."""

import torch
from jaxtyping import Float
from torch import Tensor


def steering_hinge(
    x: Float[Tensor, "n ..."], safe: Float[Tensor, "n ..."], unsafe: Float[Tensor, "n ..."], margin: float
) -> Float[Tensor, " n"]:
    """Return max(mean |x - safe|^2 - mean |x - unsafe|^2 + margin, 0), the mean over all but the first axis.

    Its gradient where it is positive, 2 (unsafe - safe) / N, does not depend on x: it pushes with constant force until
    x is nearer to `safe` by the margin, and then leaves x where it is. It does not pull x onto `safe`.

    Source: TRCE's second stage (arXiv:2503.07389; form by its official code).
    """
    rest = tuple(range(1, x.ndim))
    to_safe, to_unsafe = ((x - other).square().mean(dim=rest) for other in (safe, unsafe))
    return torch.clamp(to_safe - to_unsafe + margin, min=0)
