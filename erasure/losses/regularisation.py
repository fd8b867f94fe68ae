"""Penalties on the distance of trained weights to a reference.

DUGE's abstract (arXiv:2503.13769) names a regularisation and does not say which; these are the usual ones: L2-SP and
L1-SP (Li et al., ICML 2018, arXiv:1802.01483) and EWC (Kirkpatrick et al., arXiv:1612.00796). Each is a mean over all
trained scalars, so that its weight means the same whatever is trained.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Shifts = Mapping[str, Tensor]
"""By parameter name, the weights under training minus the reference."""


def l2_sp(shifts: Shifts) -> Float[Tensor, ""]:
    """Return `1/P sum_p (theta_p - ref_p)^2` over the P trained scalars."""
    return _total([shift.square().sum() for shift in shifts.values()]) / _count(shifts)


def l1_sp(shifts: Shifts) -> Float[Tensor, ""]:
    """Return `1/P sum_p |theta_p - ref_p|`."""
    return _total([shift.abs().sum() for shift in shifts.values()]) / _count(shifts)


def ewc(shifts: Shifts, fisher: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Return `1/P sum_p F_p (theta_p - ref_p)^2`, with F from `normalised_fisher`."""
    return _total([(fisher[name] * shift.square()).sum() for name, shift in shifts.items()]) / _count(shifts)


def normalised_fisher(squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a diagonal Fisher of mean 1 from the mean squared gradients of single images.

    With all gradients zero nothing is known of what matters: every weight counts alike.
    """
    mean = _total([square.sum() for square in squares.values()]) / _count(squares)
    return {name: square / mean if mean > 0 else torch.ones_like(square) for name, square in squares.items()}


def _total(parts: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack(parts).sum()


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
