"""EraseAnything's reverse self-contrast of attention (arXiv:2412.20413)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.attention import layers_up_to
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import Timestep
from ...concept import Concept
from ...errors import InputError
from ...losses.contrastive import reverse_contrast
from ...prompts import fill, templates
from ...registry import Exactness
from ..context import TrainingTask
from ..finetune import Loss, below
from ..student import Student
from ..trajectories import POOL_SIZE, Latents, TrajectoryPoints, trajectory_points
from ..word_attention.mass import word_mass
from .base import Term


@dataclass(frozen=True, kw_only=True)
class Contrast(Term):
    """Attention to the target's name unlike that to its synonym, and like that to unrelated names.

        L = log sum_{i=0..K} exp(cos(F, F_i) / tau) - mean_{i=1..K} cos(F, F_i) / tau

    F is the attention of all pixels and layers to the target's name, mean over heads; F_0 that to an alias of it and
    F_1 to F_K those to preserved names, in the same sentence and at the same latents, read by the reference without
    gradient. Latents are on the reference's trajectories of the target's prompts.

    Differs from the paper: synonym and unrelated names are the concept's alias and preserved names, where it asks a
    language model; concepts without both have no part.

    Attributes:
        unrelated: Preserved names of an image (K), drawn anew, > 0.
        temperature: tau, > 0.
        max_pixels: Largest layer, in pixels, > 0; None is all of them.
    """

    name: ClassVar[str] = "contrast"
    source: ClassVar[str] = "arXiv:2412.20413"
    exactness: ClassVar[Exactness] = "reconstructed"
    erases: ClassVar[bool] = True

    unrelated: Annotated[int, Field(ge=1)] = 3
    temperature: Annotated[float, Field(gt=0)] = 0.07
    max_pixels: Annotated[int, Field(ge=1)] | None = None

    def loss(self, task: TrainingTask) -> Loss:
        backbone, layers = task.backbone, layers_up_to(task.backbone, self.max_pixels)
        concepts = contrasted(task.concepts)
        if not concepts:
            raise InputError(
                "shape.keep.contrast: expected a concept with aliases and preserved names, got none. Name them."
            )
        pool: list[tuple[TrajectoryPoints, list[tuple[Concept, str]]]] = []

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            if not pool:
                pool.append(self._drawn(task, concepts, generator))
            points, sentences = pool[0]
            rows = [below(len(points), generator) for _ in range(task.batch_size)]
            latents, timestep, _ = points.select(rows)
            names = [self._names(sentences[row][0], generator) for row in rows]

            def features(place: int) -> Float[Tensor, "n dim"]:
                named = [each[place] for each in names]
                read = backbone.encode([fill(sentences[row][1], name) for row, name in zip(rows, named, strict=True)])
                return attention_features(backbone, layers, latents, timestep, read, named)

            with torch.no_grad(), task.reference():
                synonym, *others = [features(place) for place in range(1, 2 + self.unrelated)]
            value = reverse_contrast(student(features, 0), synonym, torch.stack(others, 1), self.temperature)
            return value.mean()

        return loss

    def _names(self, concept: Concept, generator: torch.Generator) -> list[str]:
        """Return the target, a synonym and unrelated names."""
        draws = [concept.aliases, *[concept.preserve] * self.unrelated]
        return [concept.target, *(names[below(len(names), generator)] for names in draws)]

    def _drawn(
        self, task: TrainingTask, concepts: Sequence[Concept], generator: torch.Generator
    ) -> tuple[TrajectoryPoints, list[tuple[Concept, str]]]:
        """Return latents with the concept and the sentence of each."""
        sentences = [(concept, template) for concept in concepts for template in templates(concept.kind)]
        chosen = [sentences[below(len(sentences), generator)] for _ in range(POOL_SIZE)]
        prompts = [fill(template, concept.target) for concept, template in chosen]
        with task.reference():
            points = trajectory_points(task.backbone, prompts, generator)
        return points, chosen * (len(points) // len(chosen))


def contrasted(concepts: Sequence[Concept]) -> list[Concept]:
    """Return the concepts that have a synonym and unrelated names."""
    return [concept for concept in concepts if concept.aliases and concept.preserve]


def attention_features(
    backbone: Backbone,
    layers: Sequence[str],
    latents: Latents,
    timestep: Timestep,
    read: Conditioning,
    names: Sequence[str],
) -> Float[Tensor, "n dim"]:
    """Return the attention of all layers' pixels to each prompt's name, mean over heads."""
    mass = word_mass(backbone, layers, latents, timestep, read, names)
    return torch.cat([each.mean(1) for each in mass.values()], dim=1)
