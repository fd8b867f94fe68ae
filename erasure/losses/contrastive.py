"""Losses between a point to approach and a point to leave."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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


def nearer_to(
    x: Float[Tensor, "n ..."],
    anchor: Float[Tensor, "n ..."],
    original: Float[Tensor, "n ..."],
    *,
    repel: float = 1.0,
    margin: float = 0.0,
) -> Float[Tensor, " n"]:
    """Return max(|x - anchor| - repel |x - original| + margin |anchor - original|, 0), Euclidean norms of each row.

    With `repel` 1 and no margin it is 0 on the half-space of what is nearer to the anchor, whose edge is half way; with
    a smaller one on a ball around the anchor side, of radius repel |a - o| / (1 - repel^2) around
    a + repel^2 / (1 - repel^2) (a - o). Margin 1 at `repel` 1 asks for the anchor or more. Its gradient has a length
    of at most 1 + repel, whatever the scale. The norms have 1e-6 under their root: at the start x is the original.

    Source: GEM (arXiv:2606.00140; form by its official code, the margin ours).
    """
    to_anchor, to_original, apart = (
        ((one - other).flatten(1).square().sum(1) + 1e-6).sqrt()
        for one, other in ((x, anchor), (x, original), (anchor, original))
    )
    return torch.clamp(to_anchor - repel * to_original + margin * apart, min=0)


def reverse_contrast(
    features: Float[Tensor, "n dim"],
    synonym: Float[Tensor, "n dim"],
    unrelated: Float[Tensor, "n k dim"],
    temperature: float = 0.07,
) -> Float[Tensor, " n"]:
    """Return log sum_i exp(s_i / temperature) - mean_k s_k / temperature, over the synonym and k unrelated features.

    s are cosines with `features`: it falls as they leave the synonym's and come near the unrelated ones. With all
    cosines equal it is log(k + 1).

    Source: EraseAnything (arXiv:2412.20413), its signs as its text has them; notes on its formula disagree.
    """
    others = torch.cat([synonym[:, None], unrelated], dim=1)
    cosines = F.cosine_similarity(features[:, None], others, dim=-1) / temperature
    return cosines.logsumexp(1) - cosines[:, 1:].mean(1)
