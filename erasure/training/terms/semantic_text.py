"""Semantic preservation of text features, reconstructed from ClassDiffusion (arXiv:2405.17532)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...losses.semantic import cosine_preservation
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss
from ..phrases import phrase_features
from ..student import Student
from .base import Term


@dataclass(frozen=True, kw_only=True)
class SemanticText(Term):
    """Distance of the text features of the class phrases to the reference's: 1 - cos at the end of text.

    The mean over both encoders where there are two: the states of the first, the sentence vector of the second.
    ClassDiffusion ties an instance to its class by the same distance.
    """

    name: ClassVar[str] = "semantic-text"
    source: ClassVar[str] = "arXiv:2405.17532"
    exactness: ClassVar[Exactness] = "reconstructed"
    reads: ClassVar[Literal["encoder", "text", "any"]] = "encoder"

    def loss(self, task: TrainingTask) -> Loss:
        backbone = task.backbone
        ids = backbone.encode(self.phrases(task.concepts)).ids
        with task.reference(), torch.no_grad():
            before = phrase_features(backbone, ids)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            features = student(phrase_features, backbone, ids)
            return torch.stack([cosine_preservation(*pair) for pair in zip(features, before, strict=True)]).mean()

        return loss
