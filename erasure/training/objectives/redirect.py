"""Redirection to the anchor's prediction: Concept Ablation (arXiv:2303.13516) and SalUn (arXiv:2310.12508)."""

from collections.abc import Mapping
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
from ..draws.noised_images import (
    NoisedDraw,
    NoisedImages,
    Shown,
    read_by,
    reference_reads,
    reread,
    squared_errors,
)
from ..draws.resized_images import ResizedImages
from ..student import Student
from .noised import Measure, NoisedObjective

Latents = Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class Redirect(NoisedObjective):
    """The anchor's prediction in the target's place, on noised images.

        L = |eps(x_t, c) - sg eps'(x_t, a)|^2 + prior |eps(x_t, a) - eps|^2

    c is a prompt of the target and a the same with the anchor; sg stops the gradient. With `goal` "noise" the first
    term is |eps(x_t, c) - eps|^2: the target's name is taught on images of the anchor. Where the teacher eps' is the
    model under training, the pair could drift together without the second term.

    Attributes:
        shows: Content of the images: the "anchor" (Concept Ablation), or the "target" (SalUn).
        goal: Aim of the prediction for the target's prompt: that for the "anchor"'s, or the true "noise".
        teacher: Model of the aim: the "student", as published, or the "original", which cannot drift.
        prior: Weight of the denoising loss on the same images with the anchor's prompt, >= 0.
        resize: Whether images are shrunk on padding, which the loss leaves out, or enlarged, with words for it in front
            of the prompts, and half of them mirrored (Concept Ablation's augmentation).
    """

    name: ClassVar[str] = "redirect"
    source: ClassVar[str] = "arXiv:2303.13516"
    exactness: ClassVar[Exactness] = "published"

    # An image of the anchor says nothing of what is forgotten.
    weighs_images: ClassVar[bool] = False
    # With a moving aim the loss of a few steps need not fall.
    quick: ClassVar[Mapping[str, Any]] = {**NoisedObjective.quick, "teacher": "original"}

    early: Annotated[float, Field(gt=0, le=1)] = 1.0
    shows: Shown = "anchor"
    goal: Literal["anchor", "noise"] = "anchor"
    teacher: Literal["student", "original"] = "student"
    prior: Annotated[float, Field(ge=0)] = 0.0
    resize: bool = False

    def noised(self, task: TrainingTask) -> NoisedImages:
        kind = ResizedImages if self.resize else NoisedImages
        return kind(
            task.context,
            task.concepts,
            images=self.images,
            image_steps=self.image_steps,
            early=self.early,
            shows=self.shows,
        )

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            named, anchor = self._predicted(student, batch, task)
            values = squared_errors(named, self._aim(batch, anchor, task), batch.mask)
            return values + self.prior * squared_errors(anchor, batch.truth, batch.mask) if self.prior else values

        return measure

    def _predicted(self, student: Student, batch: NoisedDraw, task: TrainingTask) -> tuple[Latents, Latents]:
        """Return the student's predictions for the target's and the anchor's prompts; the second as far as needed."""
        backbone = task.backbone
        if not self.prior:
            named = read_by(student, backbone, batch, batch.named)
            if self.goal == "noise" or self.teacher == "original":
                return named, named
            with torch.no_grad():
                return named, read_by(student, backbone, batch, batch.anchors)

        def both() -> Latents:
            prompts = reread(student, backbone, concatenate([batch.named, batch.anchors]))
            twice = batch.latents.repeat(2, 1, 1, 1)
            return scheduled_prediction(backbone, twice, batch.timesteps.repeat(2), prompts)

        named, anchor = student(both).chunk(2)
        return named, anchor

    def _aim(self, batch: NoisedDraw, anchor: Latents, task: TrainingTask) -> Latents:
        if self.goal == "noise":
            return batch.truth
        return anchor.detach() if self.teacher == "student" else reference_reads(task, batch, batch.anchors)
