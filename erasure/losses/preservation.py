"""Losses that keep the predictions for everything that is not removed."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Latents = Float[Tensor, "n c h w"]


def prior_preservation(predicted: Latents, target: Latents) -> Float[Tensor, ""]:
    """Return DUGE's prior-preservation loss (arXiv:2503.13769; formula second-hand): the mean squared error.

    Args:
        predicted: The output of the model under training for noised images of the memory.
        target: `NoiseSchedule.target`, the plain form; or the original model's output for the same, the distilled one
            (reconstructed), which varies less and is zero while nothing has moved.
    """
    return F.mse_loss(predicted, target)


def reading_distance(
    states: Float[Tensor, "n dim"], weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """Return the mean relative change of the projections of text states, |P W'^T - P W^T|^2 / |P W^T|^2.

    Args:
        states: P, what is to be read as before.
        weights: W' by name, each (out, dim), with gradient.
        originals: W by the same names.
    """
    changed = [
        (states @ (weights[name] - original).T).square().sum() / (states @ original.T).square().sum()
        for name, original in originals.items()
    ]
    return torch.stack(changed).mean()
