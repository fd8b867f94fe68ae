"""Semantic preservation of keys and values, reconstructed from ClassDiffusion (arXiv:2405.17532)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...losses.semantic import kv_preservation
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss
from ..student import Student
from .base import Term


@dataclass(frozen=True, kw_only=True)
class SemanticKv(Term):
    """Distance of the keys and values of the class phrases' words and ends to the reference's."""

    name: ClassVar[str] = "semantic-kv"
    source: ClassVar[str] = "arXiv:2405.17532"
    exactness: ClassVar[Exactness] = "reconstructed"
    reads: ClassVar[Literal["encoder", "text", "any"]] = "text"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        read = backbone.read(self.phrases(task.concepts), trailing=False)
        positions = torch.arange(read.states.shape[1], device=read.eot.device)
        inside = (positions >= 1) & (positions <= read.eot[:, None])
        states = read.states[inside.to(read.states.device)].float()
        projections = backbone.sites(reads="text")
        with task.reference():
            originals = {name: p.detach().float() for name, p in backbone.parameters(projections.__contains__).items()}

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            weights = student.weights()
            # Layers that are not trained would add nothing.
            return kv_preservation(states, weights, {name: w for name, w in originals.items() if name in weights})

        return loss
