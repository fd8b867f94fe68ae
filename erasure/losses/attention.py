"""Losses and indices on cross-attention maps.

Overlaps are as A-STAR measures them (Agarwal et al., ICCV 2023, arXiv:2306.14544); the distance of whole maps is DUGE's
(Thakral et al., arXiv:2503.13769), reconstructed.
"""

from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-6  # as in InitNO's loss of the same form: no division by an empty map


def overlap(one: Float[Tensor, "*n h w"], other: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Return sum min(A, B) / sum (A + B), the fraction of eqs. 2 and 3: 0 for disjoint maps, 0.5 for equal ones."""
    return one.minimum(other).sum((-2, -1)) / ((one + other).sum((-2, -1)) + EPSILON)


def soft_iou(one: Float[Tensor, "*n h w"], other: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """Return sum min(A, B) / sum max(A, B): 0 for disjoint maps, 1 for equal ones.

    The paper's text speaks of IoU, its equations are `overlap`: x there is x / (1 - x) here.
    """
    return one.minimum(other).sum((-2, -1)) / (one.maximum(other).sum((-2, -1)) + EPSILON)


def binarised(maps: Float[Tensor, "*n h w"], threshold: float = 0.5) -> Bool[Tensor, "*n h w"]:
    """Return where a map is at least `threshold` of its maximum; reconstructed, the paper states no rule."""
    maps = maps.detach()
    return maps >= threshold * maps.amax((-2, -1), keepdim=True)


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
