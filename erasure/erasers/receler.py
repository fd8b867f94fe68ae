"""Receler, lightweight erasers with locality and adversarial prompts (Huang et al., ECCV 2024, arXiv:2311.17717)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.base import Ability, Backbone
from ..backbones.conditioning import Conditioning, concatenate
from ..backbones.schedule import Timestep
from ..concept import Concept
from ..edits import WeightEdit
from ..prompts import anchored, fill, templates
from ..registry import Exactness
from ..sampling import scheduled_prediction
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Loss, Optimisation, below
from ..training.inner_attack import RunningAttack, VectorAttack, inserted
from ..training.objectives.guided import negatively_guided
from ..training.shape import Shape
from ..training.student import Student
from ..training.trajectories import PartialTrajectories, encoded
from ..training.word_attention.layer_inputs import watched_inputs
from ..training.word_attention.locality import Locality, written_outside
from .base import Eraser, Work

Latents = Float[Tensor, "n c h w"]
_ROLES = ("cross.out", "joint.out")


@dataclass(frozen=True, kw_only=True)
class Receler(Eraser):
    """Small patches behind each cross-attention, kept to the concept's region, trained against vectors in the prompt.

    With v a few vectors behind the concept's word in its states c, eps_0 the frozen model and x_t latents that the
    model under training denoised part of the way, it minimises

        |eps(x_t, [c; v]) - [eps_0(x_t) - negative_guidance (eps_0(x_t, c) - eps_0(x_t))]|^2
        + locality mean_l |E_l outside of the region|^2

    where E_l is what the patch of layer l adds to its output, and the region is where eps_0 attends to the word. Before
    each update v is moved to undo the erasure: it minimises |eps(x_t, [c; v]) - eps_0(x_t, c)|^2.

    Differs from the paper: the patch is linear, U D instead of U gelu(D ... + b), so that it is a change of the layer's
    output projection; D reads the input of that projection, and biases are left out. A concept with an anchor has it in
    the place of the unconditional prompt.

    Attributes:
        negative_guidance: Strength of the erasure (eta), >= 0.
        locality: Weight of the patches' output outside the region, >= 0; 0 has no region.
        threshold: Share of the way from the least to the largest attention above which a pixel is in the region, in
            [0, 1].
        map_pixels: Size in pixels of the layers whose attention is read for the region; the nearest size counts, > 0.
        attack: Search for v. In the released code the vectors run on through the whole training.
        prompts: "bare" trains on the target's name, as published, "templates" on all names in the templates of the
            concept's kind.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0.
            Differs from the paper: 1 there.
        rank: Rank of the patches, > 0.
        steps: Number of updates, >= 0: 500 in the published script, 1,000 by its function's default.
        lr: Learning rate of Adam, > 0.
        batch_size: Start codes a step, > 0.
        shape: Further terms, transforms, selector and finishes.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "receler"
    source: ClassVar[str] = "arXiv:2311.17717, code 3ccedc9"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "MIT"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    needs: ClassVar[frozenset[Ability]] = frozenset(("maps",))
    main: ClassVar[tuple[str, ...]] = ("steps", "lr", "locality")
    quick: ClassVar[Mapping[str, Any]] = {
        "steps": 2,
        "lr": 1e-2,
        "sample_steps": 3,
        "rank": 2,
        "attack": {"vectors": 2, "updates": 2},
    }

    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    locality: Annotated[float, Field(ge=0)] = 0.1
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    map_pixels: Annotated[int, Field(ge=1)] = 256
    attack: VectorAttack = field(default_factory=lambda: VectorAttack(weight_decay=0.1, start="uniform"))
    prompts: PromptForm = "bare"
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 128
    steps: Annotated[int, Field(ge=0)] = 500
    lr: Annotated[float, Field(gt=0)] = 3e-4
    batch_size: Annotated[int, Field(ge=1)] = 1
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        task = TrainingTask(
            context=context,
            requests=concepts,
            trained=backbone.sites(_ROLES).__contains__,
            batch_size=self.batch_size,
        )
        optimisation = Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, optimizer="adam")
        changes = self.shape.train(task, self.loss(task), optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def loss(self, task: TrainingTask) -> Loss:
        """Return the loss of a training."""
        attacks = [_Attacked(self, task, concept) for concept in task.concepts]

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            return attacks[below(len(attacks), generator)].loss(student, generator)

        return loss


class _Attacked:
    """One concept of a training with its trajectories, its region and the vectors against it."""

    def __init__(self, settings: Receler, task: TrainingTask, concept: Concept) -> None:
        self._settings, self._backbone = settings, task.backbone
        prompts = _prompts(concept, settings.prompts)
        self._named = task.backbone.encode([prompt for prompt, _, _ in prompts])
        self._anchors = encoded(task.backbone, [anchor for _, _, anchor in prompts])
        self._words = [self._named.word_positions(row, word) for row, (_, word, _) in enumerate(prompts)]
        self._attack = RunningAttack(settings.attack, self._named.states.flatten(0, 1))
        self._locality = Locality.of(task.backbone, settings.map_pixels, settings.threshold)
        self._latents = PartialTrajectories(
            task.backbone,
            self._named,
            steps=settings.sample_steps,
            guidance_scale=settings.start_guidance,
            uses=settings.trajectory_uses,
            batch_size=settings.batch_size,
        )

    def loss(self, student: Student, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the loss at latents of the student, after a move of the vectors against it."""
        settings, backbone = self._settings, self._backbone
        x, timestep, rows = student(self._latents.next, generator)
        named, words = self._named.select(rows), [self._words[row] for row in rows]
        with torch.no_grad():
            both = concatenate([self._anchors.select(rows), named])
            free, bound = scheduled_prediction(backbone, torch.cat([x, x]), timestep, both).chunk(2)
        behind = [positions[-1] + 1 for positions in words]

        def undone(vectors: Float[Tensor, "k dim"]) -> Float[Tensor, ""]:
            read = inserted(named, vectors, behind)
            return F.mse_loss(student(scheduled_prediction, backbone, x, timestep, read), bound)

        read = inserted(named, self._attack.moved(undone, generator), behind)
        predicted, inputs = student(_with_inputs, backbone, x, timestep, read, list(student.shifts()))
        erasing = F.mse_loss(predicted, negatively_guided(free, bound, settings.negative_guidance))
        if not settings.locality:
            return erasing
        masks = self._locality.masks(x, timestep, named, words)
        return erasing + settings.locality * written_outside(inputs, student.shifts(), masks)


def _with_inputs(
    backbone: Backbone, latents: Latents, timestep: Timestep, read: Conditioning, weights: Sequence[str]
) -> tuple[Latents, dict[str, Float[Tensor, "n pixels dim"]]]:
    """Return the prediction, and the input of the layer of each weight by the weight's name."""
    with watched_inputs(backbone, [name.rpartition(".")[0] for name in weights]) as inputs:
        predicted = scheduled_prediction(backbone, latents, timestep, read)
    return predicted, {name: inputs[name.rpartition(".")[0]] for name in weights}


def _prompts(concept: Concept, form: PromptForm) -> list[tuple[str, str, str]]:
    """Return prompts of a concept, each with its word and with the anchor's prompt."""
    if form == "bare":
        return [(concept.target, concept.target, concept.anchor)]
    return [
        (fill(template, name), name, anchored(template, concept))
        for name in concept.names
        for template in templates(concept.kind)
    ]
