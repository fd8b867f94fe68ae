"""Steps in the null space of kept inputs: KORE (arXiv:2510.19316), KUDA's relaxed form (arXiv:2602.19275)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.layer_readings import input_moments
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Gradient, StepMap
from .base import Transform

_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class NullSpace(Transform):
    """Steps of linear layers that hardly change what the layers answer to kept inputs.

        C = X X^T / N = U diag(lam) U^T,   step <- step P
        hard:    P = projector on the smallest directions whose lam add up to at most (1 - kept) of all
        relaxed: P = U diag(rho / (rho + lam / mean(lam))) U^T

    X (in, N) are the inputs of a layer, all tokens or pixels, on the reference's trajectories for class phrases; C is
    in float64. The step is what the optimiser made, so P holds for Adam and for weight decay. A patch `up @ down` has P
    on `down`, its start included. Biases of such layers are held, as they reach every input. Convolutions of more than
    one pixel, and norms, are left alone.

    Differs from KORE: every step is projected; it splits the weight once, at the start.

    Attributes:
        form: "hard" or "relaxed".
        kept: Share of the inputs' energy that a hard projection shields, in (0, 1).
        rho: Relative energy at which a relaxed projection lets half of the step pass, > 0.
    """

    name: ClassVar[str] = "null-space"
    source: ClassVar[str] = "arXiv:2510.19316"
    exactness: ClassVar[Exactness] = "reconstructed"

    form: Literal["hard", "relaxed"] = "relaxed"
    kept: Annotated[float, Field(gt=0, lt=1)] = 0.99
    rho: Annotated[float, Field(gt=0)] = 0.01

    def limiting(self, task: TrainingTask) -> StepMap:
        moments = kept_moments(task)
        projectors = {name: self.projector(moment).float() for name, moment in moments.items()}
        biases = {name.removesuffix(".weight") + ".bias" for name in projectors}

        def inside(step: Gradient) -> Gradient:
            limited = dict(step)
            for leaf, change in step.items():
                if leaf.name in biases:
                    limited[leaf] = torch.zeros_like(change)
                elif leaf.name in projectors and leaf.part != "up":
                    projector = projectors[leaf.name].to(change.device)
                    limited[leaf] = (change.flatten(1) @ projector).view_as(change)
            return limited

        return inside

    def projector(self, moment: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
        """Return P, symmetric, from the second moment C of a layer's inputs."""
        energies, directions = torch.linalg.eigh(moment)
        energies = energies.clamp(min=0)
        if self.form == "relaxed":
            gains = self.rho / (self.rho + energies / energies.mean().clamp(min=1e-300))
        else:
            free = energies.cumsum(0) <= (1 - self.kept) * energies.sum()
            gains = free.to(energies)
        return directions * gains @ directions.T


def kept_moments(task: TrainingTask) -> Mapping[str, Float[Tensor, "in in"]]:
    """Return the second moments of the inputs of the trained linear layers on the task's pool."""
    backbone, pool = task.backbone, task.pool
    names = [name for name in backbone.parameters(task.trained) if name.endswith(".weight")]

    def run() -> None:
        for start in range(0, len(pool), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(pool)))
            scheduled_prediction(backbone, *pool.select(rows))

    with task.reference():
        return input_moments(backbone, names, run)
