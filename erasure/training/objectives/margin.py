"""QCRD's contrast with the student's own earlier state (arXiv:2405.13014)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...losses.preference import advantage
from ...registry import Exactness
from ..context import TrainingTask
from ..draws.noised_images import NoisedDraw, NoisedImages, read_by, reference_reads, squared_errors
from ..finetune import Gradient
from ..student import Leaf, Student
from .calibrated import confidence_scale
from .noised import Measure, NoisedObjective


@dataclass(frozen=True, kw_only=True)
class Margin(NoisedObjective):
    """An approach to the anchor's prediction, and a margin to the student's own of some updates ago.

        L = d(x, pos) + alpha s relu(delta - d(x, neg)),   x = eps(x_t, c)

    pos = eps_0(x_t, a), neg = eps(x_t, c) by the weights of the last multiple of `lag` updates; d is the mean square
    (squared noise). s in [0, 1] judges the negative: the mean over pixels of the confidence that it still shows the
    target, sigmoid(tau (e_a - e_c)) as in `Calibrated`; a past self that no longer does is none.

    Differs from the paper: the denoiser is the judge, theirs is trained; there is one positive, where theirs is the
    nearest of several; delta is that of a squared error, theirs of a cross entropy.

    Attributes:
        lag: Updates between two copies of the weights, > 0.
        delta: Margin, >= 0.
        alpha: Weight of the hinge at first, >= 0.
        decay: Factor of that weight at each copy, in (0, 1].
    """

    name: ClassVar[str] = "margin"
    source: ClassVar[str] = "arXiv:2405.13014"
    exactness: ClassVar[Exactness] = "reconstructed"

    lag: Annotated[int, Field(ge=1)] = 25
    delta: Annotated[float, Field(ge=0)] = 0.01
    alpha: Annotated[float, Field(ge=0)] = 0.5
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        tau = confidence_scale(task, images)
        past = _Past(self.lag)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            anchor = reference_reads(task, batch, batch.anchors)
            with torch.no_grad(), student.moved(past.offsets(student, step)):
                negative = read_by(student, task.backbone, batch, batch.named)
            judged = torch.sigmoid(tau * advantage(negative, anchor, batch.truth)).flatten(1).mean(1)
            named = read_by(student, task.backbone, batch, batch.named)
            alpha = self.alpha * self.decay ** (step // self.lag)
            return contrasted(named, anchor, negative, alpha * judged, self.delta)

        return measure


def contrasted(
    x: Float[Tensor, "n c h w"],
    positive: Float[Tensor, "n c h w"],
    negative: Float[Tensor, "n c h w"],
    weights: Float[Tensor, " n"],
    delta: float,
) -> Float[Tensor, " n"]:
    """Return d(x, positive) + weight relu(delta - d(x, negative)), d the mean square."""
    return squared_errors(x, positive) + weights * (delta - squared_errors(x, negative)).clamp(min=0)


class _Past:
    """Weights of the student at the last multiple of some number of updates."""

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._block = -1
        self._copy: dict[Leaf, Tensor] = {}

    def offsets(self, student: Student, step: int) -> Gradient:
        """Return the way from the student's leaves to the copy, which is renewed when its time is over."""
        if step // self._lag != self._block:
            self._block = step // self._lag
            self._copy = {leaf: each.detach().clone() for leaf, each in student.leaves.items()}
        return {leaf: self._copy[leaf] - each.detach() for leaf, each in student.leaves.items()}
