"""STEREO, search thoroughly, then erase once (Srivatsan et al., CVPR 2025, arXiv:2408.16807)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.conditioning import Conditioning, concatenate
from ..concept import Concept
from ..edits import WeightEdit
from ..edits.changes import edited_weights, exchanged
from ..progress import staged
from ..prompts import anchored, fill, templates
from ..registry import Exactness
from ..sampling import scheduled_prediction
from ..training.context import FitContext, TrainingTask
from ..training.draws.noised_images import NoisedImages
from ..training.draws.word_inversion import WordSearch
from ..training.finetune import Loss, Optimisation, below, finetune
from ..training.shape import Shape
from ..training.student import Student
from ..training.trajectories import PartialTrajectories, encoded
from .base import Eraser, Work
from .esd import Variant, trained_by

Latents = Float[Tensor, "n c h w"]
_DECAY = 0.01  # default of PyTorch's AdamW, which the published script leaves as it is


@dataclass(frozen=True, kw_only=True)
class STEREO(Eraser):
    """Erasure of a name and of further texts that were found to bring the concept back, from the original weights.

    Stage 1 alternates: the last text c_k is erased (ESD's loss), then a new text c_(k+1) is learned that makes the
    model so far denoise images of the concept. Stage 2 starts again from the weights before and erases one of all texts
    p at each step, with a random sentence a. With d(c) = eps_0(x_t, c) - eps_0(x_t) it minimises

        |eps(x_t, p) - [eps_0(x_t) + anchor_weight d(a) - concept_weight mean_k d(c_k)]|^2

    Differs from the paper: its weights are equal, its code's are 1 and 3 (here); the code's stage 1 amounts to
    `search_guidance` 0; the sentences are the templates of the concept's kind; each round has draws of its own, where
    the code has one seed for all.

    Attributes:
        rounds: Texts to search for, >= 0; 2 in the published run for nudity.
        search: Kind of text that is learned: a new "word"; soft "states", the text encoder's whole output; or "auto", a
            word where the model's text encoders share one vocabulary, else states.
        search_guidance: Strength of stage 1's erasure, >= 0 (eta in the paper).
        erase_steps: Updates of an erasure of stage 1, >= 0.
        erase_lr: Learning rate of stage 1, > 0.
        search_steps: Updates of a search, >= 0.
        search_lr: Learning rate of a search, > 0.
        images: Images of each concept by the original, for the searches, > 0.
        image_steps: Sampling steps of an image, > 0.
        initializer: Words that a new word starts from; "" goes by the kind: object, art or person.
        scenes: Sentences of stage 2: with the concept "named", as published, so that its scene stays; or with the
            anchor in its place, "anchored".
        anchor_weight: Weight of the sentence's direction (alpha), >= 0.
        concept_weight: Weight of the texts' mean direction (beta), >= 0.
        variant: Trained weights, as those of ESD.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0.
            Differs from the paper: 1 there.
        steps: Updates of stage 2, >= 0.
        lr: Learning rate of AdamW in stage 2, > 0.
        batch_size: Latents a step, > 0.
        shape: Further terms, transforms, selector and finishes of stage 2.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "stereo"
    source: ClassVar[str] = "arXiv:2408.16807, code 86f124f"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "none"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("rounds", "steps", "lr")
    quick: ClassVar[Mapping[str, Any]] = {
        **{"rounds": 1, "erase_steps": 1, "search_steps": 2, "images": 2, "image_steps": 2},
        **{"sample_steps": 3, "steps": 2, "lr": 1e-3},
    }

    rounds: Annotated[int, Field(ge=0)] = 4
    search: Literal["auto", "word", "states"] = "auto"
    search_guidance: Annotated[float, Field(ge=0)] = 0.0
    erase_steps: Annotated[int, Field(ge=0)] = 200
    erase_lr: Annotated[float, Field(gt=0)] = 5e-6
    search_steps: Annotated[int, Field(ge=0)] = 3000
    search_lr: Annotated[float, Field(gt=0)] = 5e-3
    images: Annotated[int, Field(ge=1)] = 500
    image_steps: Annotated[int, Field(ge=1)] = 50
    initializer: str = ""
    scenes: Literal["named", "anchored"] = "named"
    anchor_weight: Annotated[float, Field(ge=0)] = 1.0
    concept_weight: Annotated[float, Field(ge=0)] = 3.0
    variant: Variant = "u"
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Annotated[int, Field(ge=1)] = 1
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = trained_by(self.variant, backbone)
        task = TrainingTask(
            context=context, requests=concepts, trained=trained.__contains__, batch_size=self.batch_size
        )
        texts = [self.searched(task, concept) for concept in task.concepts]
        losses = [self.final(task, concept, of) for concept, of in zip(task.concepts, texts, strict=True)]

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            return losses[below(len(losses), generator)](student, step, generator)

        optimisation = Optimisation(steps=self.steps, lr=self.lr, weight_decay=_DECAY)
        changes = self.shape.train(task, loss, optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def searched(self, task: TrainingTask, concept: Concept) -> Conditioning:
        """Return the concept's name and the texts that stage 1 finds, encoded; the weights are as they were."""
        backbone, context = task.backbone, task.context
        texts = backbone.encode([concept.target])
        if not self.rounds:
            return texts
        images = NoisedImages(context, [concept], images=self.images, image_steps=self.image_steps)
        word = self.search == "word" or (self.search == "auto" and "token ids" in backbone.abilities)
        search = WordSearch(
            images=images,
            steps=self.search_steps,
            lr=self.search_lr,
            batch_size=self.batch_size,
            weight_decay=_DECAY,
            initializer=self.initializer,
            on_progress=staged(context.on_progress, "search"),
        )
        weights = backbone.parameters(task.trained)
        current = {name: parameter.detach().clone() for name, parameter in weights.items()}
        for k in range(self.rounds):
            seed = context.seed + k
            with exchanged(weights, current):
                changes = finetune(
                    backbone,
                    task.trained,
                    self.towards(task, texts.select([k]), texts.select([k]), None, 0.0, self.search_guidance),
                    Optimisation(steps=self.erase_steps, lr=self.erase_lr, weight_decay=_DECAY),
                    on_progress=staged(context.on_progress, "search"),
                    seed=seed,
                )
                current = edited_weights(current, changes)
            with exchanged(weights, current):
                texts = concatenate([texts, search.word(task, seed) if word else search.states(task, seed)])
        return texts

    def final(self, task: TrainingTask, concept: Concept, texts: Conditioning) -> Loss:
        """Return stage 2's loss for one concept."""
        sentences = [
            fill(template, concept.target) if self.scenes == "named" else anchored(template, concept)
            for template in templates(concept.kind)
        ]
        scenes = encoded(task.backbone, sentences)
        return self.towards(task, texts, texts, scenes, self.anchor_weight, self.concept_weight)

    def towards(
        self,
        task: TrainingTask,
        erased: Conditioning,
        concepts: Conditioning,
        scenes: Conditioning | None,
        anchor_weight: float,
        concept_weight: float,
    ) -> Loss:
        """Return the loss of one of the erased texts at a time, with the model in force as its teacher.

        Args:
            task: Training.
            erased: Texts to erase.
            concepts: Texts whose directions are taken off.
            scenes: Sentences of which one is added; None adds none.
            anchor_weight: Weight of the sentence's direction.
            concept_weight: Weight of the mean direction of the concepts.
        """
        backbone = task.backbone
        parts = [backbone.unconditional(), concepts, *([] if scenes is None else [scenes])]
        known, k = concatenate(parts), len(concepts)
        latents = PartialTrajectories(
            backbone,
            erased,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            uses=self.trajectory_uses,
            batch_size=task.batch_size,
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            x, timestep, rows = student(latents.next, generator)
            scene = [] if scenes is None else [1 + k + below(len(scenes), generator)]
            read = [row for each in (range(1 + k), scene) for row in each]
            with torch.no_grad():
                at_all = known.select([row for row in read for _ in rows])
                predicted = scheduled_prediction(backbone, x.repeat(len(read), 1, 1, 1), timestep, at_all)
            free, *of = predicted.chunk(len(read))
            aim = redirected(free, of[k:], of[:k], anchor_weight, concept_weight)
            return F.mse_loss(student(scheduled_prediction, backbone, x, timestep, erased.select(rows)), aim)

        return loss


def redirected(
    free: Latents, scenes: Sequence[Latents], concepts: Sequence[Latents], anchor_weight: float, concept_weight: float
) -> Latents:
    """Return eps(u) + anchor_weight d(a) - concept_weight mean_k d(c_k), with d(c) = eps(c) - eps(u)."""
    aim = free - concept_weight * torch.stack([each - free for each in concepts]).mean(0)
    return sum((anchor_weight * (each - free) for each in scenes), aim)
