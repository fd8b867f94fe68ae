"""SalUn, saliency-based unlearning (Fan et al., ICLR 2024, arXiv:2310.12508)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.noised_images import NoisedImages, kept_concepts, read_by, squared_errors
from ..training.finetune import Loss, Optimisation, WeightedLoss
from ..training.objectives.redirect import Redirect
from ..training.selectors.saliency import Reduction, Saliency
from ..training.shape import Shape
from ..training.student import Student
from .base import Eraser, Work


@dataclass(frozen=True, kw_only=True)
class SalUn(Eraser):
    """Relabelling of the target's images with a stand-in's prompt, in the half of the weights that they depend on most.

        |eps(x_t, c) - sg eps(x_t, a)|^2 + retain |eps(x_t^r, c_r) - eps|^2

    x_t are noised images of the target, c its prompt and a the anchor's, the stand-in; x_t^r are noised images of what
    stays, with their prompts. Only the entries that the selector `erasure.training.selectors.saliency.Saliency` masks
    are moved. Because images of the target are trained on, what is moved is not bound to its name.

    Differs from the paper: the stand-in is the concept's anchor, where it draws another class (its code takes the
    following one); without an anchor it is the same sentence without the target.

    Attributes:
        share: Share of all entries that are trained, in (0, 1]; 1 has no mask.
        reduction: Sum over batches behind the mask: "signed" gradients, as in the released code, "absolute" or
            "squared" ones.
        mask_guidance: Guidance of the prediction behind the mask, >= 0.
        retain: Weight of the training on what stays (alpha), >= 0: 0.5 in the README, 0.1 by the script's default.
        teacher: Model of the aim: the "student", as published, or the "original", which cannot drift.
            Differs from the paper: "student" there.
        images: Images of each concept, and as many of what stays in all, > 0. What stays are the preserved names, or
            the anchor where there are none.
        image_steps: Sampling steps of an image, > 0.
        steps: Number of updates, >= 0: 5 passes over the images in the published runs.
        lr: Learning rate of Adam, > 0.
        batch_size: Images a step, of the target and of what stays, > 0.
        shape: Further terms, transforms, selector and finishes; a selector takes the place of the saliency.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "salun"
    source: ClassVar[str] = "arXiv:2310.12508, code a6e89fd"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "MIT"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr", "share")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "lr": 1e-3, "images": 2, "image_steps": 2, "batch_size": 2}

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    reduction: Reduction = "signed"
    mask_guidance: Annotated[float, Field(ge=0)] = 7.5
    retain: Annotated[float, Field(ge=0)] = 0.5
    teacher: Literal["student", "original"] = "student"
    images: Annotated[int, Field(ge=1)] = 800
    image_steps: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=0)] = 500
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 8
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        task = TrainingTask(
            context=context,
            requests=concepts,
            trained=backbone.sites().__contains__,
            reference=context.original,
            batch_size=self.batch_size,
        )
        shape = self.shape if self.shape.sites is not None else replace(self.shape, sites=self.saliency)
        changes = shape.train(
            task,
            Redirect(images=self.images, image_steps=self.image_steps, shows="target", teacher=self.teacher),
            Optimisation(steps=self.steps, lr=self.lr, optimizer="adam"),
            terms=[WeightedLoss(loss=self.retaining(task), weight=self.retain)] if self.retain else [],
        )
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    @property
    def saliency(self) -> Saliency:
        """Selector of the trained entries."""
        return Saliency(
            share=self.share,
            guidance=self.mask_guidance,
            reduction=self.reduction,
            images=self.images,
            image_steps=self.image_steps,
            batch_size=self.batch_size,
        )

    def retaining(self, task: TrainingTask) -> Loss:
        """Return the denoising loss on images of what the concepts preserve, or of their anchors without any."""
        kept = kept_concepts(task.concepts)
        each = max(1, self.images // len(kept or task.concepts))
        images = NoisedImages(
            task.context,
            kept or task.concepts,
            images=each,
            image_steps=self.image_steps,
            shows="target" if kept else "anchor",
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            batch = images.draw(self.batch_size, generator)
            predicted = read_by(student, task.backbone, batch, batch.named if kept else batch.anchors)
            return squared_errors(predicted, batch.truth).mean()

        return loss
