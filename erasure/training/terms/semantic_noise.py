"""Semantic preservation of predictions, reconstructed from ClassDiffusion (arXiv:2405.17532)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import POOL_SIZE, TrajectoryPoints, trajectory_points
from .base import Term

_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class SemanticNoise(Term):
    """Distance of the prediction for the class phrases to the reference's, on the reference's trajectories."""

    name: ClassVar[str] = "semantic-noise"
    source: ClassVar[str] = "arXiv:2405.17532"
    exactness: ClassVar[Exactness] = "reconstructed"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        phrases = self.phrases(task.concepts)
        pool: list[TrajectoryPoints] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not pool:
                prompts = [phrases[below(len(phrases), generator)] for _ in range(POOL_SIZE)]
                with task.reference():
                    pool.append(trajectory_points(backbone, prompts, generator))
            points = pool[0].select([below(len(pool[0]), generator) for _ in range(_BATCH)])
            with task.reference(), torch.no_grad():
                expected = scheduled_prediction(backbone, *points)
            return F.mse_loss(student(scheduled_prediction, backbone, *points), expected)

        return loss
