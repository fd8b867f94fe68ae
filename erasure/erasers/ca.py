"""CA, Concept Ablation (Kumari et al., ICCV 2023, arXiv:2303.13516)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Backbone
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.augmentation import reads_images
from ..training.finetune import Optimisation
from ..training.objectives.redirect import Redirect
from ..training.selectors.roles import ATTENTION, TEXT_KEYS_AND_VALUES
from ..training.shape import Shape
from .base import Eraser, Work

_ROLES = {"kv": TEXT_KEYS_AND_VALUES, "attention": ATTENTION, "full": None}


@dataclass(frozen=True, kw_only=True)
class CA(Eraser):
    """Fine-tuning of keys and values towards the prediction for the anchor, on noised images of the anchor.

    The formula is that of the objective `erasure.training.objectives.redirect.Redirect`: model-based (`goal` "anchor")
    or noise-based ("noise"). A wide anchor, such as "cat" for "grumpy cat", says what the target becomes; without one
    it is the same sentence without the target.

    Differs from the paper: the sentences are the templates of the concept's kind, where theirs are 200 of a chat model;
    a model that predicts v is trained on the noise of its prediction, where the later code takes the noise itself.

    Attributes:
        goal: Aim of the prediction for the target's prompt: that for the "anchor"'s (model-based), or the true "noise".
        teacher: Model of the aim: the "student", as published, or the "original", which cannot drift.
            Differs from the paper: "student" there.
        prior_weight: Weight of the denoising loss on the same images with the anchor's prompt, >= 0 (lambda): 0.2 in
            the code of the published numbers, 1 in the later one.
        weights: Trained weights: "kv", keys and values of the attention that reads text; "attention", all of attention
            (nudity); or "full", the denoiser (memorised images).
        images: Images of each concept's anchor, > 0; 200 in the shorter published runs.
        image_steps: Sampling steps of an image, > 0.
        resize: Whether images are shrunk on padding or enlarged, with words for it in front of the prompts, and half of
            them mirrored. None does so where the model's autoencoder is of Stable Diffusion's kind.
        steps: Number of updates, >= 0.
        lr: Learning rate of AdamW, > 0. The published 2e-6 is multiplied by the size of the batch, over all GPUs.
        batch_size: Images a step, > 0.
        weight_decay: Weight decay of AdamW, >= 0.
        clip_norm: Largest norm of the gradient, > 0.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
            Differs from the paper: none there.
        shape: Further terms, transforms, selector and finishes.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "ca"
    source: ClassVar[str] = "arXiv:2303.13516, code c11fb1b"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "MIT"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr", "prior_weight")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "lr": 1e-3, "images": 2, "image_steps": 2, "batch_size": 2}

    goal: Literal["anchor", "noise"] = "anchor"
    teacher: Literal["student", "original"] = "student"
    prior_weight: Annotated[float, Field(ge=0)] = 0.2
    weights: Literal["kv", "attention", "full"] = "kv"
    images: Annotated[int, Field(ge=1)] = 1000
    image_steps: Annotated[int, Field(ge=1)] = 25
    resize: bool | None = None
    steps: Annotated[int, Field(ge=0)] = 100
    lr: Annotated[float, Field(gt=0)] = 1.6e-5
    batch_size: Annotated[int, Field(ge=1)] = 8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    rank: Annotated[int, Field(ge=1)] | None = None
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        task = TrainingTask(
            context=context,
            requests=concepts,
            trained=backbone.sites(_ROLES[self.weights]).__contains__,
            reference=context.original,
            batch_size=self.batch_size,
        )
        optimisation = Optimisation(
            steps=self.steps,
            lr=self.lr,
            rank=self.rank,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )
        changes = self.shape.train(task, self.objective(backbone), optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def objective(self, backbone: Backbone) -> Redirect:
        """Return the main loss of the training."""
        return Redirect(
            images=self.images,
            image_steps=self.image_steps,
            goal=self.goal,
            teacher=self.teacher,
            prior=self.prior_weight,
            resize=reads_images(backbone) if self.resize is None else self.resize,
        )
