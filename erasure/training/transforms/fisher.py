"""Smaller gradients where kept predictions depend on the weight: LWF's Fisher weights (arXiv:2505.19715)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.sensitivity import prediction_fisher
from ..finetune import Gradient, GradientMap
from ..student import Leaf
from .base import Transform


@dataclass(frozen=True, kw_only=True)
class Fisher(Transform):
    """The main gradient, weaker in the entries that kept predictions depend on.

        g_e <- g_e (mean F / (mean F + F))^gamma

    F is the diagonal Fisher of the reference's predictions for class phrases as the mean of a Gaussian, the mean of
    (d<eps(x_t, y), v> / d theta)^2 over latents and random v with entries of 1 and -1; the gradient of a term itself is
    zero at the reference. Unlike EWC it does not pull back. A factor of a patch has the mean of F over its other axis.
    Adam undoes a constant factor of an entry: beside it the map acts through the balance with the terms, and without
    their gradient g_e is as it was.

    Differs from the paper: F is of what is kept, theirs weighs samples by how they conflict.

    Attributes:
        gamma: Exponent, >= 0; 0 changes nothing.
        samples: Single latents for F, > 0.
    """

    name: ClassVar[str] = "fisher"
    source: ClassVar[str] = "arXiv:2505.19715"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"samples": 2}

    gamma: Annotated[float, Field(ge=0)] = 0.5
    samples: Annotated[int, Field(ge=1)] = 64

    def prepared(self, task: TrainingTask) -> GradientMap:
        fisher = prediction_fisher(task, self.samples)
        return Damping({name: damping(each, self.gamma) for name, each in fisher.items()})


def damping(fisher: Tensor, gamma: float) -> Tensor:
    """Return (mean F / (mean F + F))^gamma of one weight, in (0, 1]; 1 everywhere where F is zero."""
    mean = fisher.mean()
    return (mean / (mean + fisher)) ** gamma if mean > 0 else torch.ones_like(fisher)


class Damping(GradientMap):
    """Constant factors of the main gradient.

    Args:
        factors: Factor of each entry, by parameter name.
    """

    def __init__(self, factors: Mapping[str, Tensor]) -> None:
        self._factors = factors

    def __call__(self, erase: Gradient, keep: Gradient, step: int) -> tuple[Gradient, Gradient]:
        if not any(gradient.any() for gradient in keep.values()):
            return erase, keep
        return {leaf: gradient * self._of(leaf, gradient) for leaf, gradient in erase.items()}, keep

    def _of(self, leaf: Leaf, gradient: Tensor) -> Tensor | float:
        factor = self._factors.get(leaf.name)
        if factor is None:
            return 1.0
        factor = factor.to(gradient.device)
        match leaf.part:
            case "up":
                return factor.flatten(1).mean(1, keepdim=True)
            case "down":
                return factor.flatten(1).mean(0, keepdim=True)
            case "rows":
                return factor[-len(gradient) :]
            case _:
                return factor
