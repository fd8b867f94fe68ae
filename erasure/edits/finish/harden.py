"""An edit that survives rounding: its weights lie on the grid, with the error fed back (GPTQ, arXiv:2210.17323).

Rounding can bring back what was erased (arXiv:2410.16454).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.layer_readings import input_moments
from ...concept import Concept, Kind
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ...typed_torch import cholesky
from ..weight_edit import WeightEdit
from .base import Finish, with_deltas
from .passes import named_trajectories

_DAMPING = 0.01  # of the mean diagonal, as in GPTQ's code: the moment of few inputs is singular


@dataclass(frozen=True, kw_only=True)
class Harden(Finish):
    """The edited weights on the grid of so many bits, such that the rounded layers answer as the edited ones did.

        min_Q |Q X - (W + dW) X|^2,   Q = s z,  z integers,  s = max |(W + dW)_row| / (2^(bits - 1) - 1)

    column by column: the error of rounding column j is fed back into the columns after it through the inverse of
    X X^T + damping (GPTQ). X (in, N) are the inputs of the linear layers that the edit changes, in the edited model, on
    its trajectories for the targets and the preserved names. A weight that is rounded to this grid once more stays as
    it is. Kernels of more than one pixel are rounded to nearest; vectors, and weights that the edit does not change,
    are left as they are.

    Attributes:
        bits: Bits of the grid, in [2, 8]; None leaves the edit as it is.
        prompts: Prompts of the trajectories, of targets and preserved names in turn, > 0.
        image_steps: Steps of a trajectory, > 1.
    """

    name: ClassVar[str] = "harden"
    source: ClassVar[str] = "arXiv:2210.17323"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"prompts": 2, "image_steps": 2})

    bits: Annotated[int, Field(ge=2, le=8)] | None = 4
    prompts: Annotated[int, Field(ge=1)] = 32
    image_steps: Annotated[int, Field(ge=2)] = 20

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        bits = self.bits
        if bits is None:
            return edit
        weights = {name: p.detach().double() for name, p in backbone.parameters(edit.changes.__contains__).items()}
        with edit.applied_to(backbone.pipe, check=False):
            moments = input_moments(backbone, edit.changes, lambda: self._run(backbone, edit.metadata.concepts))

        def finished(name: str, delta: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
            edited = weights[name].to(delta) + delta
            if edited.ndim < 2:
                return None
            moment = moments.get(name)
            flat = edited.flatten(1)
            # Without inputs, every column is as important as the next and nothing is fed back.
            rounded = on_grid(flat, torch.eye(flat.shape[1]).to(flat) if moment is None else moment, bits)
            return rounded.view_as(edited) - weights[name].to(delta)

        return with_deltas(edit, backbone, finished)

    @torch.no_grad()
    def _run(self, backbone: Backbone, concepts: Sequence[Concept]) -> None:
        """Make the passes whose inputs count."""
        pairs: list[tuple[str, Kind]] = [
            (name, concept.kind) for concept in concepts for name in (concept.target, *concept.preserve)
        ]
        names = [pairs[i % len(pairs)] for i in range(self.prompts)]
        for each in named_trajectories(backbone, names, self.image_steps):
            scheduled_prediction(backbone, each.latents, each.timestep, each.prompts)


def on_grid(weight: Float[Tensor, "out in"], moment: Float[Tensor, "in in"], bits: int) -> Float[Tensor, "out in"]:
    """Return a weight on its grid whose answers to inputs of the second moment are near the weight's own.

    The largest entry of a row stays, so that a second rounding finds the same grid.
    """
    levels = 2 ** (bits - 1) - 1
    largest = weight.abs().amax(1)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / levels
    fixed = weight.abs().argmax(1)
    damped = moment.to(weight) + _DAMPING * moment.diagonal().mean().to(weight) * torch.eye(len(moment)).to(weight)
    factor = cholesky(torch.cholesky_inverse(cholesky(damped)), upper=True)
    left = weight.clone()
    for column in range(weight.shape[1]):
        rounded = (left[:, column] / scale).round().clamp(-levels, levels) * scale
        rounded = torch.where(fixed == column, weight[:, column], rounded)
        error = (left[:, column] - rounded) / factor[column, column]
        left[:, column] = rounded
        left[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return left
