"""Losses on how much better one prompt explains an image than another (CATNIP, arXiv:2602.02824, reconstructed)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def advantage(
    named: Float[Tensor, "n c h w"], anchor: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n h w"]:
    """Return e_a - e_c for each pixel: how much smaller the squared error of the target's prompt is than the anchor's.

    e(u) is the mean over channels of the squared error at pixel u.
    """
    return (anchor - truth).square().mean(1) - (named - truth).square().mean(1)


def calibrated_negative(logits: Float[Tensor, "n h w"], beta: float = 1.0) -> Float[Tensor, " n"]:
    """Return mean_u (2 / beta) softplus(beta logit p_u): negative preference with 1 - p as the reference.

    Its slope in a logit is 2 sigmoid(beta logit): 2 where p is sure, 0 where it is forgotten. With beta = 1 it is
    plain unlikelihood, -2 log(1 - p).
    """
    return (2 / beta) * F.softplus(beta * logits).flatten(1).mean(1)


def scale_of_confidence(advantages: Float[Tensor, "..."], confidence: float = 0.9) -> float:
    """Return the tau at which the mean of sigmoid(tau d) over the positive advantages d is `confidence`, by bisection.

    1 where no advantage is positive: there is nothing to be sure of.
    """
    positive = advantages[advantages > 0].double()
    if not len(positive):
        return 1.0
    low, high = 0.0, 1.0 / float(positive.mean())
    while float(torch.sigmoid(high * positive).mean()) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(torch.sigmoid(middle * positive).mean()) < confidence else (low, middle)
    return high if math.isfinite(high) else 1.0
