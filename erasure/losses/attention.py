"""Losses and indices on cross-attention maps.

Overlaps are as A-STAR measures them (Agarwal et al., ICCV 2023, arXiv:2306.14544); the distance of whole maps is DUGE's
(Thakral et al., arXiv:2503.13769), reconstructed.
"""

from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6  # as in InitNO's loss of the same form: no division by an empty map

Rule = Literal["half", "otsu"]


def overlap(one: Float[Tensor, "*n h w"], other: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Return sum min(A, B) / sum (A + B), the fraction of eqs. 2 and 3: 0 for disjoint maps, 0.5 for equal ones."""
    return one.minimum(other).sum((-2, -1)) / (one + other).sum((-2, -1)).clamp(min=EPSILON)


def soft_iou(one: Float[Tensor, "*n h w"], other: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Return sum min(A, B) / sum max(A, B): 0 for disjoint maps, 1 for equal ones.

    The paper's text speaks of IoU, its equations are `overlap`: x there is x / (1 - x) here.
    """
    return one.minimum(other).sum((-2, -1)) / (one.maximum(other).sum((-2, -1)) + EPSILON)


def binarised(maps: Float[Tensor, "*n h w"], threshold: float = 0.5) -> Bool[Tensor, "*n h w"]:
    """Return where a map is at least `threshold` of its maximum; reconstructed, the paper states no rule."""
    maps = maps.detach()
    return maps >= threshold * maps.amax((-2, -1), keepdim=True)


def otsu(maps: Float[Tensor, "*n h w"]) -> Bool[Tensor, "*n h w"]:
    """Return where a map is above the threshold that parts its values best (Otsu 1979, IEEE SMC 9:62), no gradient.

    Every value of the map is tried as the last of the lower class; the largest variance between the classes wins. A
    map of one value has no region.
    """
    values = maps.detach().flatten(-2)
    ordered = values.sort(dim=-1).values
    n = ordered.shape[-1]
    below = torch.arange(1, n, device=maps.device, dtype=ordered.dtype)
    sums = ordered.cumsum(-1)
    low, high = sums[..., :-1] / below, (sums[..., -1:] - sums[..., :-1]) / (n - below)
    between = below * (n - below) * (high - low).square()
    threshold = ordered.gather(-1, between.argmax(-1, keepdim=True))
    return (values > threshold).view(maps.shape)


def regions(maps: Float[Tensor, "*n h w"], rule: Rule = "half", threshold: float = 0.5) -> Bool[Tensor, "*n h w"]:
    """Return the region that each map holds, by `binarised` or by `otsu`; no gradient."""
    return binarised(maps, threshold) if rule == "half" else otsu(maps)


def segregation(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, " n"]:
    """Return A-STAR's segregation loss, eq. 2: `overlap` summed over all pairs of k concepts' maps.

    0 for disjoint maps; 0.5 a pair, without a gradient, for equal ones. A map that shrinks to nothing brings it to 0 as
    well: `retention`, or maps of one sum, keep that from paying.
    """
    pairs = list(combinations(range(maps.shape[1]), 2))
    if not pairs:
        return maps.sum((1, 2, 3)) * 0
    return torch.stack([overlap(maps[:, one], maps[:, other]) for one, other in pairs]).sum(0)


def retention(maps: Float[Tensor, "n k h w"], masks: Float[Tensor, "n k h w"]) -> Float[Tensor, " n"]:
    """Return A-STAR's retention loss, eq. 3: one minus the `overlap` of each map with its mask, summed over concepts.

    In [0.5, 1] a concept: 0.5 where the map is the mask, 1 where it is nowhere in it. The masks are the regions of the
    step before; or a user's layout; or, to keep an edited model's attention where the original's was, the regions of
    the original at the same latents.
    """
    return (1 - overlap(maps, masks)).sum(1)


def leak(erased: Float[Tensor, "n h w"], kept: Float[Tensor, "n k h w"]) -> Float[Tensor, " n"]:
    """Return the share of the kept concepts' regions that an erased one covers: the sum of sum min(A, B) / sum B.

    One-sided, for erasure (reconstructed): `segregation` would also strengthen the erased concept where it is the
    stronger of two, this only pushes it out. The regions get no gradient. 0 for disjoint ones.
    """
    kept = kept.detach()
    inside = erased[:, None].minimum(kept).sum((-2, -1)) / kept.sum((-2, -1)).clamp(min=EPSILON)
    return inside.sum(1)


def neglect(maps: Float[Tensor, "n k h w"]) -> Float[Tensor, " n"]:
    """Return Attend-and-Excite's loss (Chefer et al., arXiv:2301.13826, eq. 1): 1 - the peak of the weakest concept."""
    return (1 - maps.amax((-2, -1))).amax(1)


def competing(maps: Float[Tensor, "n tokens h w"], scale: float = 100.0) -> Float[Tensor, "n tokens h w"]:
    """Return maps in (0, 1) in which tokens compete for each pixel: a softmax over `scale` times the probabilities.

    As in Attend-and-Excite's code; the caller leaves the start of text and what follows the prompt out.
    """
    return (scale * maps).softmax(dim=1)


def smoothed(maps: Float[Tensor, "n k h w"], sigma: float = 0.5) -> Float[Tensor, "n k h w"]:
    """Return maps blurred over 3 x 3 pixels, reflected at the borders.

    The weights are exp(-(x / (2 sigma))^2) as in Attend-and-Excite's code: an effective width of sqrt(2) sigma.
    """
    side = torch.exp(-((torch.arange(-1, 2, device=maps.device, dtype=maps.dtype) / (2 * sigma)) ** 2))
    kernel = torch.outer(side, side) / side.sum() ** 2
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel.expand(maps.shape[1], 1, 3, 3), groups=maps.shape[1])


def map_distance(
    maps: Float[Tensor, "batch heads pixels tokens"], reference: Float[Tensor, "batch heads pixels tokens"]
) -> Float[Tensor, ""]:
    """Return the squared distance of two distributions over tokens, mean over batch, heads and pixels; in [0, 2].

    One layer's part of DUGE's unlearning loss `mean_i (A_i(c) - A_i(empty))^2`. What is summed and what averaged
    inside the square is not known from the paper; over tokens a sum keeps the loss from being tiny, since most of the
    attention is on the start of the text.
    """
    return (maps - reference).square().sum(-1).mean()


def output_distance(
    outputs: Float[Tensor, "batch pixels channels"], reference: Float[Tensor, "batch pixels channels"]
) -> Float[Tensor, ""]:
    """Return the squared distance of what a layer reads, as a share of the reference's mean square.

    The extension that DUGE's specification proposes where equal maps are not enough, reconstructed: also what the
    values put in counts. The share makes layers of unlike sizes count alike.
    """
    return (outputs - reference).square().mean() / (reference.square().mean() + EPSILON)
