"""EraseAnything (Gao et al., ICML 2025, arXiv:2412.20413).

Notes on the paper's formulas and a description of the official code (commit 67d8c0b, BSD-3) are the sources. Nothing
here is copied from that code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from ..backbones.base import Ability, Backbone
from ..concept import Concept
from ..edits import WeightEdit
from ..prompts import fill, templates
from ..registry import Exactness
from ..sampling import SamplingSettings
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Optimisation, WeightedLoss, alternating, below, uniform
from ..training.objectives.guided import Guided
from ..training.replay import replay_loss
from ..training.replay_memory import Memory, remembered, replayed
from ..training.shape import Shape
from ..training.terms.contrast import Contrast, contrasted
from ..training.terms.suppression import Suppression, shuffled
from .base import Eraser, Work

_IMAGE_SEED = 70_000_000


@dataclass(frozen=True, kw_only=True)
class EraseAnything(Eraser):
    """Patches of the text's queries and keys: negative guidance, attention away from the name, images that stay.

        L = L_esd + attention_weight L_attn + keep_weight L_keep + contrast_weight L_rsc

    L_esd is the objective `guided`, L_attn the term `suppression`, L_rsc the term `contrast`, and L_keep the loss of
    training, |v(x_t, c_k) - target|^2, on images of the model before the first removal. On a UNet the patches are of
    cross-attention's queries and keys.

    Differs from the paper: one optimiser and one learning rate for all losses, as in the code, instead of two levels.
    Differs from the code, unless set: latents are paired with the timestep that they are at, the teacher is frozen, the
    kept images do not show the target, and all losses are summed in each update.

    Attributes:
        negative_guidance: Strength of the erasure (eta), >= 0.
        attention_weight: Weight of the attention to the target's words, >= 0.
        keep_weight: Weight of the images that stay, >= 0.
        contrast_weight: Weight of the contrast of attention, >= 0; only concepts with an alias and preserved names have
            one.
        latents: Latents of L_esd: "part-way" ones of a trajectory at their timestep, or "finished" ones at a random
            timestep, as in the code.
        teacher: Model of L_esd's goal: the "frozen" one, or the "student", as in the code.
        kept_images: Images of L_keep: "preserved" names and everyday things, or the "target" with its words in random
            order in 90 % of the prompts and an alias in its place in 50 %, as in the code.
        alternate: Whether even updates follow L_keep and L_rsc and odd ones the others, as in the code.
        start_guidance: Scale of classifier-free guidance of the trajectories, >= 1.
        sample_steps: Steps of their schedule, > 0.
        trajectory_uses: Updates fed by one trajectory, > 0; 1 in the code.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        max_pixels: Largest layer of both losses of attention, in pixels, > 0; None is all of them.
        memory_size: Images of L_keep, >= 2.
        max_similarity: Largest similarity of a kept image's prompt to the target's as text, in [-1, 1].
        image_steps: Sampling steps of the images, > 0.
        image_guidance: Scale of their classifier-free guidance, >= 0.
        steps: Number of updates, >= 0; 300 for styles.
        lr: Learning rate of AdamW, > 0.
        batch_size: Latents a step, > 0.
        rank: Rank of the patches, > 0.
        shape: Further terms, transforms, selector and finishes (ours).
    """

    name: ClassVar[str] = "eraseanything"
    source: ClassVar[str] = "arXiv:2412.20413"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "BSD-3-Clause"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    needs: ClassVar[frozenset[Ability]] = frozenset(("maps",))
    main: ClassVar[tuple[str, ...]] = ("steps", "negative_guidance", "attention_weight")
    quick: ClassVar[Mapping[str, Any]] = {
        "steps": 2,
        "sample_steps": 3,
        "memory_size": 2,
        "image_steps": 2,
        "max_similarity": 1.0,
        "contrast_weight": 0.0,
    }

    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    attention_weight: Annotated[float, Field(ge=0)] = 1e-3
    keep_weight: Annotated[float, Field(ge=0)] = 0.1
    contrast_weight: Annotated[float, Field(ge=0)] = 0.1
    latents: Literal["part-way", "finished"] = "part-way"
    teacher: Literal["frozen", "student"] = "frozen"
    kept_images: Literal["preserved", "target"] = "preserved"
    alternate: bool = False
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 28
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    memory_size: Annotated[int, Field(ge=2)] = 64
    max_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.9
    image_steps: Annotated[int, Field(ge=1)] = 28
    image_guidance: Annotated[float, Field(ge=0)] = 4.0
    steps: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 8
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = queried(backbone).__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, batch_size=self.batch_size)
        objective, erasing, keeping = self._objective, self._erasing(task), self._keeping(task)
        optimisation = Optimisation(steps=self.steps, lr=self.lr, rank=self.rank)
        if self.alternate and keeping:
            erasing = [WeightedLoss(loss=objective.loss(task), weight=1.0), *erasing]
            changes = self.shape.train(task, alternating(keeping, erasing), optimisation)
        else:
            changes = self.shape.train(task, objective, optimisation, terms=[*erasing, *keeping])
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    @property
    def _objective(self) -> Guided:
        return Guided(
            negative_guidance=self.negative_guidance,
            start_guidance=self.start_guidance,
            sample_steps=self.sample_steps,
            trajectory_uses=self.trajectory_uses,
            prompts=self.prompts,
            teacher=self.teacher,
            pairing="exact" if self.latents == "part-way" else "any",
        )

    def _erasing(self, task: TrainingTask) -> list[WeightedLoss]:
        """Return L_attn, where it has a weight."""
        if not self.attention_weight:
            return []
        loss = Suppression(max_pixels=self.max_pixels).loss(task)
        return [WeightedLoss(loss=loss, weight=self.attention_weight, erases=True)]

    def _keeping(self, task: TrainingTask) -> list[WeightedLoss]:
        """Return L_keep and L_rsc, where they have a weight."""
        losses: list[WeightedLoss] = []
        if self.contrast_weight and contrasted(task.concepts):
            loss = Contrast(max_pixels=self.max_pixels).loss(task)
            losses.append(WeightedLoss(loss=loss, weight=self.contrast_weight, erases=True))
        if self.keep_weight:
            memory = self._memory(task)
            batch = self.batch_size
            loss = replay_loss(memory, task.context, batch_size=batch, prompt_dropout=0.0, distill=False)
            losses.append(WeightedLoss(loss=loss, weight=self.keep_weight))
        return losses

    def _memory(self, task: TrainingTask) -> Memory:
        sampling = SamplingSettings(steps=self.image_steps, guidance_scale=self.image_guidance, batch_size=8)
        context = task.context
        if self.kept_images == "preserved":
            return replayed(
                context,
                task.concepts,
                self.memory_size,
                each=True,
                max_similarity=self.max_similarity,
                sampling=sampling,
                seed=_IMAGE_SEED,
            )
        named = [(concept, template) for concept in task.concepts for template in templates(concept.kind)]
        chosen = [named[i % len(named)] for i in range(self.memory_size)]
        prompts = [fill(template, concept.target) for concept, template in chosen]
        memory = remembered(context, prompts, sampling=sampling, seed=_IMAGE_SEED)
        generator = torch.Generator().manual_seed(context.seed)
        return Memory(prompts=tuple(_disguised(*each, generator) for each in chosen), latents=memory.latents)


def _disguised(concept: Concept, template: str, generator: torch.Generator) -> str:
    """Return a prompt of the target as the official code alters it."""
    mixes, renames = uniform(generator) < 0.9, uniform(generator) < 0.5
    renamed = renames and concept.aliases
    name = concept.aliases[below(len(concept.aliases), generator)] if renamed else concept.target
    return fill(shuffled(template, generator) if mixes else template, name)


def queried(backbone: Backbone) -> frozenset[str]:
    """Return the full names of the text's queries and keys, or on a UNet of those of cross-attention."""
    return frozenset(backbone.sites(("joint.text.q", "joint.text.k")) or backbone.sites(("cross.q", "cross.k")))
