"""CASteer: reflection of a concept's direction in the outputs of cross-attention (Gaintseva et al., arXiv:2503.09630).

With h the output at a pixel and s the unit direction from prompts without the concept to prompts with it, of the same
layer and step:

    h' = h - beta max(<h, s>, 0) s, scaled to the length of h
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor

from ..registry import Exactness
from .steered import SteeredGuidance

# A direction that adds less than this to those before it is theirs, as of two names of one thing.
_SPANNED = 1e-4

Several = Literal["mean", "each", "orthonormal"]


@dataclass(frozen=True, kw_only=True)
class CASteerGuidance(SteeredGuidance):
    """Reflects what pixels have of the targets' directions, between the steps of the fit by the nearest two.

    Attributes:
        strength: Share of a component that is taken away (beta), >= 0: 1 projects, 2 mirrors.
        clip: Whether only positive components are taken away.
        rescale: Whether the output has its old length afterwards.
        several: Directions of several targets: their "mean", which is shorter than each; "each" one after another; or
            the "orthonormal" ones nearest to all, which have no order.
        direction_timesteps: Timestep of each of the directions' steps, falling.
    """

    name: ClassVar[str] = "casteer"
    source: ClassVar[str] = "arXiv:2503.09630, code f336576"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = {"clip": False}

    strength: Annotated[float, Ge(0)] = 2.0
    clip: bool = True
    rescale: bool = True
    several: Several = "orthonormal"
    direction_timesteps: tuple[float, ...] = ()

    def steered(
        self, layer: str, output: Float[Tensor, "n pixels channels"], timestep: float
    ) -> Float[Tensor, "n pixels channels"]:
        changed = output
        for group in self.groups(self.directions_of(layer, timestep).to(output)):
            shares = changed @ group.T
            changed = changed - self.strength * (shares.clamp(min=0) if self.clip else shares) @ group
        if not self.rescale:
            return changed
        lengths = [each.norm(dim=-1, keepdim=True).clamp(min=1e-12) for each in (output, changed)]
        return changed * (lengths[0] / lengths[1])

    def groups(self, directions: Float[Tensor, "targets channels"]) -> list[Float[Tensor, "k channels"]]:
        """Return the directions that are taken away at once, one group after another."""
        if self.several == "mean":
            return [directions.mean(0, keepdim=True)]
        if self.several == "each" or len(directions) == 1:
            return list(directions.split(1))
        u, sizes, vh = torch.linalg.svd(directions.double(), full_matrices=False)
        kept = sizes > _SPANNED * sizes.max()
        return [(u[:, kept] @ vh[kept]).to(directions)]

    def directions_of(self, layer: str, timestep: float) -> Float[Tensor, "targets channels"]:
        """Return the unit directions of a layer at a timestep."""
        stored = self.directions[layer]
        later = next((i for i, each in enumerate(self.direction_timesteps) if each <= timestep), stored.shape[1] - 1)
        earlier = max(later - 1, 0)
        if later == earlier or self.direction_timesteps[later] == timestep:
            return stored[:, later]
        high, low = self.direction_timesteps[earlier], self.direction_timesteps[later]
        share = min((high - timestep) / (high - low), 1.0)
        between = stored[:, earlier].lerp(stored[:, later], share)
        return between / between.norm(dim=-1, keepdim=True).clamp(min=1e-12)
