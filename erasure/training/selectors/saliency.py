"""Saliency of single weights for images of the target: SalUn's mask (Fan et al., ICLR 2024, arXiv:2310.12508)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.conditioning import concatenate
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.noised_images import NoisedImages, squared_errors
from ..replay import gradients_of
from ..student import Student
from .base import Selection, Selector
from .gradient import largest

Reduction = Literal["signed", "absolute", "squared"]


@dataclass(frozen=True, kw_only=True)
class Saliency(Selector):
    """The entries to which the guided prediction on images of the target is most sensitive.

        G = sum over batches of d/dw |eps - [(1 + guidance) eps(x_t, c) - guidance eps(x_t)]|^2

    The entries of largest |G| are trained, a share of all weights together, vectors such as biases among them. Batches
    are summed with their sign, as in the released code, so that opposite ones cancel.

    Attributes:
        share: Share of the entries, in (0, 1].
        guidance: Guidance of the prediction, >= 0.
        reduction: Sum over batches of the gradients ("signed"), of their sizes ("absolute") or of their squares.
        per: Whether the share is of the whole "model" or of each "tensor".
        order: Entries of the "largest" score; as controls the "smallest" or "random" ones.
        images: Images of each target, > 0; each is read once.
        image_steps: Sampling steps of an image, > 0.
        batch_size: Images a batch, > 0.
    """

    name: ClassVar[str] = "saliency"
    source: ClassVar[str] = "arXiv:2310.12508, code a6e89fd"
    exactness: ClassVar[Exactness] = "published"
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2}

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    guidance: Annotated[float, Field(ge=0)] = 7.5
    reduction: Reduction = "signed"
    per: Literal["model", "tensor"] = "model"
    order: Literal["largest", "smallest", "random"] = "largest"
    images: Annotated[int, Field(ge=1)] = 64
    image_steps: Annotated[int, Field(ge=1)] = 25
    batch_size: Annotated[int, Field(ge=1)] = 8

    def selected(self, task: TrainingTask) -> Selection:
        if self.share == 1:
            return Selection(names=frozenset(task.backbone.parameters(task.trained)))
        masks = self.masks(self._scores(task), torch.Generator().manual_seed(task.context.seed))
        return Selection(names=frozenset(masks), masks=masks)

    def masks(self, scores: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return the masks of the chosen entries; a weight without any is left out."""
        match self.order:
            case "smallest":
                scores = {name: -score for name, score in scores.items()}
            case "random":
                scores = {name: torch.rand(score.shape, generator=generator) for name, score in scores.items()}
        if self.per == "model":
            return largest(scores, self.share)
        return {name: largest({name: score}, self.share)[name] for name, score in scores.items()}

    def _scores(self, task: TrainingTask) -> dict[str, Tensor]:
        """Return |G| by parameter name."""
        backbone, generator = task.backbone, torch.Generator().manual_seed(task.context.seed)
        images = NoisedImages(task.context, task.concepts, images=self.images, image_steps=self.image_steps)
        student = Student(backbone, task.trained, None, generator)
        free = backbone.unconditional()
        total = len(images.prompts)

        def gradients(start: int) -> Sequence[Tensor | None]:
            rows = range(start, min(start + self.batch_size, total))

            def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
                batch = images.noised(rows, generator)
                read = concatenate([free.expand(len(rows)), batch.named])
                twice, timesteps = batch.latents.repeat(2, 1, 1, 1), batch.timesteps.repeat(2)
                away, named = student(scheduled_prediction, backbone, twice, timesteps, read).chunk(2)
                return squared_errors(named + self.guidance * (named - away), batch.truth).mean()

            return gradients_of(student, loss, generator)

        sums = accumulated((gradients(start) for start in range(0, total, self.batch_size)), self.reduction)
        return {leaf.name: each.abs() for leaf, each in zip(student.leaves, sums, strict=True) if each is not None}


def accumulated(batches: Iterable[Sequence[Tensor | None]], reduction: Reduction) -> list[Tensor | None]:
    """Return the sum over batches of the gradients of each weight, of their sizes or of their squares."""
    reduced = {"signed": lambda g: g, "absolute": torch.abs, "squared": torch.square}[reduction]
    sums: list[Tensor | None] = []
    for gradients in batches:
        sums = sums or [None] * len(gradients)
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                before = sums[i]
                sums[i] = reduced(gradient.detach()) if before is None else before + reduced(gradient.detach())
    return sums
