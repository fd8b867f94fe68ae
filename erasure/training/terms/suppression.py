"""EraseAnything's attention loss: the image looks away from the target's words (arXiv:2412.20413)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.attention import layers_up_to
from ...prompts import fill, templates
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import POOL_SIZE, TrajectoryPoints, trajectory_points
from ..word_attention.mass import word_mass
from .base import Term


@dataclass(frozen=True, kw_only=True)
class Suppression(Term):
    """Attention of the image to the target's words.

        L = mean over images of sum over layers, heads and pixels of A[words]

    A is the attention over all tokens that a layer attends to, in joint layers those of the image too; of the target's
    words in every text encoder. Latents are on the reference's trajectories of the prompts, which name the target with
    their words in random order, so that no position stands for it.

    Differs from the code: words are those of the target's name; the code takes every token that shares an id with it.

    Attributes:
        shuffled: Whether the words of the prompts are in random order.
        max_pixels: Largest layer, in pixels, > 0; None is all of them.
    """

    name: ClassVar[str] = "suppression"
    source: ClassVar[str] = "arXiv:2412.20413"
    exactness: ClassVar[Exactness] = "reconstructed"
    erases: ClassVar[bool] = True

    shuffled: bool = True
    max_pixels: Annotated[int, Field(ge=1)] | None = None

    def loss(self, task: TrainingTask) -> Loss:
        backbone, layers = task.backbone, layers_up_to(task.backbone, self.max_pixels)
        named = [(name, template) for c in task.concepts for name in c.names for template in templates(c.kind)]
        pool: list[tuple[TrajectoryPoints, list[str]]] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not pool:
                chosen = [named[below(len(named), generator)] for _ in range(POOL_SIZE)]
                sentences = [shuffled(template, generator) if self.shuffled else template for _, template in chosen]
                prompts = [fill(sentence, name) for sentence, (name, _) in zip(sentences, chosen, strict=True)]
                with task.reference():
                    points = trajectory_points(backbone, prompts, generator)
                pool.append((points, [name for name, _ in chosen] * (len(points) // len(chosen))))
            points, names = pool[0]
            rows = [below(len(points), generator) for _ in range(task.batch_size)]
            mass = student(word_mass, backbone, layers, *points.select(rows), [names[row] for row in rows])
            return torch.stack([each.sum((1, 2)) for each in mass.values()]).sum(0).mean()

        return loss


def shuffled(template: str, generator: torch.Generator) -> str:
    """Return a template with its words in random order; the place of the name is one word."""
    words = template.split()
    return " ".join(words[i] for i in torch.randperm(len(words), generator=generator).tolist())
