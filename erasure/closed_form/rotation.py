"""Orthogonal maps of a projection's outputs that turn some of them away and leave the rest where they are."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Form = Literal["objective", "released"]
"""The minimiser of the printed objective, or the one of the printed and released closed form, which is its inverse."""

_NOISE = 1e-8  # of the rounding of float32 weights and states, relative


def span(outputs: Float[Tensor, "n dim"], rank: int | None = None) -> Float[Tensor, "dim k"]:
    """Return an orthonormal basis of the span of outputs, each counted at length 1; of its largest directions, if so.

    Args:
        outputs: Outputs, a row each.
        rank: Number of directions at most; None is all.
    """
    units = torch.nn.functional.normalize(outputs, dim=1)
    _, sizes, directions = torch.linalg.svd(units, full_matrices=False)
    return directions[sizes > _NOISE * max(float(sizes.max()), _NOISE)][:rank].T if len(outputs) else units.T


def rotation(
    target: Float[Tensor, "dim n"],
    anchor: Float[Tensor, "dim m"],
    stay: Float[Tensor, "dim dim"],
    strength: float,
    form: Form,
) -> Float[Tensor, "dim dim"]:
    """Return the orthogonal Q that maximises <Q, stay> - strength <Q R, I - R_a>.

    It is the polar factor U V^T of stay - strength (I - R_a) R, or of the transpose of that, form "released".

    R and R_a project on the spans of target and anchor. Nothing is done about the sign of det Q: a reflection is
    orthogonal too.

    Args:
        target: Orthonormal basis of the outputs to be turned.
        anchor: Orthonormal basis of those that they may become.
        stay: Symmetric weight of all directions: the larger, the less it turns.
        strength: alpha, >= 0.
        form: See `Form`.
    """
    away = target - anchor @ (anchor.T @ target)
    turned = away @ target.T
    goal = stay - strength * (turned if form == "objective" else turned.T)
    u, _, vh = torch.linalg.svd(goal)
    return u @ vh
