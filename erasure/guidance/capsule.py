"""Capsules: gates on a target's direction in the outputs of cross-attention (KIF, arXiv:2601.10566).

With h the output at a pixel, v the target's unit direction and z = (<h, v> - mean) / deviation:

    h' = h + alpha sigmoid(sharpness (z - z0)) <h, v> v

A capsule is CASteer's reflection with a gate in the place of its clip. The paper is about language models and known
second-hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor

from ..registry import Exactness
from .steered import SteeredGuidance


@dataclass(frozen=True, kw_only=True, eq=False)
class Capsule:
    """A gate on the direction by which a layer's output shows a target.

    Attributes:
        direction: Unit vector v.
        mean: Mean of <h, v> over target and others.
        deviation: Its standard deviation, > 0.
        threshold: Standardised projection at which the gate is half open (z0).
        effect: Cohen's d of the projections of target and others.
    """

    direction: Float[Tensor, " channels"]
    mean: float
    deviation: float
    threshold: float
    effect: float

    @classmethod
    def of(cls, target: Float[Tensor, "n channels"], others: Float[Tensor, "m channels"]) -> "Capsule":
        """Return the capsule that parts the outputs for the target from those for others."""
        both = torch.cat([target, others])
        spread = both.std(0).clamp(min=1e-6)
        direction = (target.mean(0) - others.mean(0)) / spread
        direction = direction / direction.norm().clamp(min=1e-12)
        shown, not_shown = target @ direction, others @ direction
        mean, deviation = float((both @ direction).mean()), max(float((both @ direction).std()), 1e-12)
        pooled = max(float(((shown.var() + not_shown.var()) / 2).sqrt()), 1e-12)
        middle = float(shown.mean() + not_shown.mean()) / 2
        return cls(
            direction=direction,
            mean=mean,
            deviation=deviation,
            threshold=(middle - mean) / deviation,
            effect=float(shown.mean() - not_shown.mean()) / pooled,
        )

    def gated(self, output: Float[Tensor, "*rows channels"], alpha: float, sharpness: float) -> Tensor:
        """Return a layer's output after the gate."""
        direction = self.direction.to(output)
        projection = (output @ direction)[..., None]
        z = (projection - self.mean) / self.deviation
        return output + alpha * torch.sigmoid(sharpness * (z - self.threshold)) * projection * direction


@dataclass(frozen=True, kw_only=True)
class CapsuleGuidance(SteeredGuidance):
    """Takes the targets' directions off the pixels whose outputs show them, one target after another by name.

    Attributes:
        alpha: Share of the direction that an open gate adds, < 0; -1 takes it away.
        sharpness: Slope of the gate in standard deviations, >= 0.
        gates: Mean, standard deviation and threshold of each target by layer, [targets, 3].
    """

    name: ClassVar[str] = "capsule"
    source: ClassVar[str] = "arXiv:2601.10566"
    exactness: ClassVar[Exactness] = "reconstructed"
    fitted: ClassVar[tuple[str, ...]] = ("directions", "gates")
    quick: ClassVar[Mapping[str, Any]] = {"sharpness": 0.0}

    alpha: Annotated[float, Lt(0)] = -1.0
    sharpness: Annotated[float, Ge(0)] = 4.0
    gates: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def steered(
        self, layer: str, output: Float[Tensor, "n pixels channels"], timestep: float
    ) -> Float[Tensor, "n pixels channels"]:
        for direction, gate in zip(self.directions[layer][:, 0], self.gates[layer].tolist(), strict=True):
            if direction.any():  # none where the fit of this target left the layer alone
                mean, deviation, threshold = gate
                capsule = Capsule(direction=direction, mean=mean, deviation=deviation, threshold=threshold, effect=0.0)
                output = capsule.gated(output, self.alpha, self.sharpness)
        return output
