"""ROKA's neural healing (arXiv:2603.00436), carried over to denoisers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.neighbours import NeighbourPool, NeighbourView, WorstFirst, nearest_by_text, neighbour_weights
from ..finetune import Loss
from ..student import Student
from .base import Term

_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Healing(Term):
    """Distillation on the names that the erasure endangers, in proportion to the danger.

        L = sum_n pi_n |eps(x_t, n) - T_n|^2 / |eps_0(x_t, n)|^2
        T_n = eps_0(x_t, n) + boost pi_n (eps_0(x_t, n) - eps_0(x_t, 0))

    n are preserved names, drawn with probability pi_n, and x_t latents of the reference's trajectories for them. The
    loss has no unit. With `boost` 0 it is 0 at the reference.

    Differs from the paper: neighbours by text and a dry run, where theirs are by contribution to hidden units; no
    guarantee on the ratios of siblings, which holds for its idealised hierarchy.

    Attributes:
        neighbours: Number of names with a weight, the nearest ones, > 0.
        boost: Share of the guidance of a neighbour that is added to its aim, >= 0.
        view: Way to weigh the names: "text", the similarity of the names; "dry-run", the drift of each name in six
            updates of a plain erasure; "union", the mean of both.
        worst_every: Updates after which the weight of each name grows with its drift, >= 0; 0 keeps the weights
            (worst-neighbour weighting, ours). All preserved names take part: half of the weight at the start is shared
            equally.
    """

    name: ClassVar[str] = "healing"
    source: ClassVar[str] = "arXiv:2603.00436"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"view": "text"}

    neighbours: Annotated[int, Field(ge=1)] = 8
    boost: Annotated[float, Field(ge=0)] = 0.0
    view: NeighbourView = "union"
    worst_every: Annotated[int, Field(ge=0)] = 0

    def loss(self, task: TrainingTask) -> Loss:
        if not any(concept.preserve for concept in task.concepts):
            raise self.nothing_to_preserve()
        nearest_only = self.view == "text" and not self.worst_every
        pool = NeighbourPool(task, list(nearest_by_text(task, self.neighbours)) if nearest_only else None)
        weights = neighbour_weights(pool, self.view, self.neighbours)
        if self.worst_every:
            weights = (weights + 1 / len(weights)) / 2
        weighting = WorstFirst(pool, weights, self.worst_every or 1)
        blank = task.backbone.unconditional()

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if self.worst_every:
                weighting.update(student, step)
            chosen = torch.multinomial(weighting.weights, _BATCH, replacement=True, generator=generator).tolist()
            rows = [
                pool.rows(pool.names[i])[int(torch.randint(len(pool.rows(pool.names[i])), (), generator=generator))]
                for i in chosen
            ]
            aim = expected = pool.reference(rows)
            if self.boost:
                shares = weighting.weights[chosen].to(aim)[:, None, None, None]
                free = pool.reference(rows, blank.expand(len(rows)))
                aim = expected + self.boost * shares * (expected - free)
            return relative_errors(pool.read_by(student, rows), aim, expected).mean()

        return loss


def relative_errors(
    predicted: Float[Tensor, "n c h w"], aim: Float[Tensor, "n c h w"], reference: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """Return |predicted - aim|^2 / |reference|^2 of each latent."""
    sizes = reference.square().flatten(1).sum(1).clamp(min=1e-12)
    return (predicted - aim).square().flatten(1).sum(1) / sizes
