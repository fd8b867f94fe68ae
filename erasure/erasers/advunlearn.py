"""AdvUnlearn, adversarial training of the text encoder (Zhang et al., NeurIPS 2024, arXiv:2405.15234)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.base import Ability
from ..backbones.conditioning import concatenate
from ..backbones.schedule import Timestep
from ..backbones.text_blocks import clip_encoders, encoder_blocks
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..sampling import scheduled_prediction
from ..training.absence.prompts import kept_pairs
from ..training.context import FitContext, TrainingTask
from ..training.draws.prefixes import encoded_behind, word_rows
from ..training.draws.prompt_pairs import PromptForm, prompt_pairs
from ..training.finetune import Loss, Optimisation, WeightedLoss, alternating, below
from ..training.inner_attack import RunningAttack, VectorAttack
from ..training.objectives.guided import negatively_guided
from ..training.shape import Shape
from ..training.student import Student
from ..training.trajectories import PartialTrajectories, encoded
from .base import Eraser, Stage, Work

Latents = Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class AdvUnlearn(Eraser):
    """Adversarial training of the text encoder: ESD's target for prompts behind a prefix that undoes the erasure.

    With T the text encoder under training, T_0 the frozen one, s a prompt of the concept, q the prefix, a few
    embeddings behind the start of text, and x_t latents on trajectories of the model before, it minimises

        |eps(x_t, T([q; s])) - [eps(x_t, T_0("")) - negative_guidance (eps(x_t, T_0(s)) - eps(x_t, T_0("")))]|^2
        + retain mean_j |eps(x_t^j, T(r_j)) - eps(x_t^j, T_0(r_j))|^2

    with prompts r_j of what stays. Before each update q is moved to minimise |eps(x_t, T([q; s])) - eps(x_t,
    T_0(s))|^2. The denoiser is not touched: the edit serves every model with this encoder, and none that reads another.

    Differs from the paper: a concept with an anchor has it in the place of the empty prompt; prompts of what stays are
    the preserved names in the templates of the concept's kind, or everyday things, where it takes names of COCO or
    ImageNet. Attacks by single tokens are not offered.

    Attributes:
        negative_guidance: Strength of the erasure (eta), >= 0.
        warm_up: First updates, which have no prefix, >= 0.
        attack: Search for the prefix. The released code never clears its gradients, `clear_gradients` false.
        attack_latents: Latents of the search's updates: "fresh" ones for each, as published, or those of the training
            step, "shared", which is many times cheaper.
        retain: Weight of the predictions for what stays (gamma), >= 0: 0.3 for nudity, 1 by the script's default.
        retain_mode: Whether these are trained "together" with the erasure, as in the README, or in every second update,
            "alternate", the script's default.
        retain_batch: Prompts of what stays an update, > 0.
        prompts: "bare" trains on the target's name, as published, "templates" on all names in the templates of the
            concept's kind.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0.
            Differs from the paper: 1 there.
        steps: Number of updates, >= 0.
        lr: Learning rate of Adam, > 0.
        batch_size: Start codes a step, > 0.
        shape: Further terms, transforms, selector and finishes.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "advunlearn"
    source: ClassVar[str] = "arXiv:2405.15234, code 9d23124"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "CC-BY-4.0"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    stage: ClassVar[Stage] = "text encoder"
    needs: ClassVar[frozenset[Ability]] = frozenset(("token ids",))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr", "retain")
    quick: ClassVar[Mapping[str, Any]] = {
        **{"steps": 2, "lr": 1e-3, "warm_up": 1, "sample_steps": 3, "retain_batch": 1, "attack_latents": "shared"},
        "attack": {"vectors": 1, "updates": 2, "lr": 1e-2},
    }

    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    warm_up: Annotated[int, Field(ge=0)] = 200
    attack: VectorAttack = field(
        default_factory=lambda: VectorAttack(vectors=1, updates=30, lr=1e-3, spread=1.0, renewed=True)
    )
    attack_latents: Literal["fresh", "shared"] = "fresh"
    retain: Annotated[float, Field(ge=0)] = 0.3
    retain_mode: Literal["together", "alternate"] = "together"
    retain_batch: Annotated[int, Field(ge=1)] = 5
    prompts: PromptForm = "bare"
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=0)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 1
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = {name for encoder in clip_encoders(backbone) for name in encoder_blocks(backbone, encoder)}
        task = TrainingTask(
            context=context, requests=concepts, trained=trained.__contains__, batch_size=self.batch_size
        )
        loss = self.erasing(task)
        terms = [WeightedLoss(loss=self.retaining(task), weight=self.retain)] if self.retain else []
        if terms and self.retain_mode == "alternate":
            loss, terms = alternating([WeightedLoss(loss=loss, weight=1.0)], terms), []
        optimisation = Optimisation(steps=self.steps, lr=self.lr, optimizer="adam")
        changes = self.shape.train(task, loss, optimisation, terms=terms)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def trajectories(self, task: TrainingTask, prompts: Sequence[str], batch_size: int) -> PartialTrajectories:
        """Return latents of random prompts on the way from noise to image."""
        return PartialTrajectories(
            task.backbone,
            task.backbone.encode(prompts),
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            uses=self.trajectory_uses,
            batch_size=batch_size,
        )

    def erasing(self, task: TrainingTask) -> Loss:
        """Return the erasing loss, which moves the prefixes against itself."""
        attacked = [_Prefixed(self, task, concept) for concept in task.concepts]

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            return attacked[below(len(attacked), generator)].loss(student, step, generator)

        return loss

    def retaining(self, task: TrainingTask) -> Loss:
        """Return the distance to the frozen encoder's predictions for what stays."""
        pairs = [pair for concept in task.concepts for pair in kept_pairs(concept, task.concepts)]
        prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
        read, backbone = task.backbone.encode(prompts), task.backbone
        latents = self.trajectories(task, prompts, self.retain_batch)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            x, timestep, rows = latents.next(generator)
            with torch.no_grad():
                expected = scheduled_prediction(backbone, x, timestep, read.select(rows))
            predicted = student(
                lambda: scheduled_prediction(backbone, x, timestep, backbone.encode_ids(read.ids[rows]))
            )
            return F.mse_loss(predicted, expected)

        return loss


class _Prefixed:
    """One concept of a training with its trajectories and the prefix against it."""

    def __init__(self, settings: AdvUnlearn, task: TrainingTask, concept: Concept) -> None:
        self._settings, self._backbone = settings, task.backbone
        prompts, anchors = zip(*prompt_pairs(concept, settings.prompts), strict=True)
        self._named, self._anchors = task.backbone.encode(prompts), encoded(task.backbone, anchors)
        self._latents = settings.trajectories(task, prompts, task.batch_size)
        self._attack = RunningAttack(settings.attack, word_rows(task.backbone))

    def loss(self, student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the erasing loss behind the prefix, after a move of the prefix against it."""
        settings, backbone = self._settings, self._backbone
        x, timestep, rows = self._latents.next(generator)
        with torch.no_grad():
            both = concatenate([self._anchors.select(rows), self._named.select(rows)])
            free, bound = scheduled_prediction(backbone, torch.cat([x, x]), timestep, both).chunk(2)
        prefix: Tensor | None = None
        if step >= settings.warm_up and settings.attack.vectors:

            def undone(vectors: Float[Tensor, "k dim"]) -> Float[Tensor, ""]:
                if settings.attack_latents == "shared":
                    return F.mse_loss(self._predicted(student, x, timestep, rows, vectors), bound)
                return self._undone(student, vectors, *self._latents.next(generator))

            prefix = self._attack.moved(undone, generator)
        predicted = self._predicted(student, x, timestep, rows, prefix)
        return F.mse_loss(predicted, negatively_guided(free, bound, settings.negative_guidance))

    def _undone(
        self, student: Student, vectors: Float[Tensor, "k dim"], x: Latents, timestep: Timestep, rows: Sequence[int]
    ) -> Float[Tensor, ""]:
        """Return the distance to the frozen encoder's prediction for the concept."""
        with torch.no_grad():
            bound = scheduled_prediction(self._backbone, x, timestep, self._named.select(list(rows)))
        return F.mse_loss(self._predicted(student, x, timestep, rows, vectors), bound)

    def _predicted(
        self, student: Student, x: Latents, timestep: Timestep, rows: Sequence[int], prefix: Tensor | None
    ) -> Latents:
        def predicted() -> Latents:
            distinct = sorted(set(rows))
            read = encoded_behind(self._backbone, self._named.ids[distinct], prefix)
            return scheduled_prediction(self._backbone, x, timestep, read.select([distinct.index(row) for row in rows]))

        return student(predicted)
