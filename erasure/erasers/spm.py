"""SPM: one-dimensional patches with latent anchoring and a gate a prompt (Lyu et al., CVPR 2024, arXiv:2312.16145)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt

from ..concept import Concept
from ..edits import Edit, LowRankChange, SamplingEdit, WeightEdit
from ..errors import InputError
from ..guidance.spm import SPMGuidance
from ..progress import Progress
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Optimisation, finetune
from ..training.objectives.anchored import Anchored, Anchors
from .base import Eraser, Stage, Work, all_names
from .leco import Where, trained_matrices


@dataclass(frozen=True, kw_only=True)
class SPM(Eraser):
    """Patches of rank one, trained to erase while other texts are held, each concept by itself.

    The formula is that of the objective `erasure.training.objectives.anchored.Anchored`. Patches of several concepts
    add up. With `gate="transport"` the weights stay, and a prompt is made with each patch as far as it is about its
    concept; see `erasure.guidance.spm.SPMGuidance`.

    Differs from the code: one gate a patch and no products across patches, as in the paper; AdamW in float32.

    Attributes:
        gate: Whether a patch acts on every prompt at full strength ("none"), as its files do where they are loaded, or
            by the prompt ("transport"), during sampling.
        negative_guidance: Strength of the erasure (g), >= 0.
        anchoring: Weight of the texts that are held (lam), >= 0.
        anchors: Texts that are held: "captions" by their distance, as in the paper, or "gaussian" states, as in the
            code.
        anchor_count: Number of texts a step (K), > 0.
        anchor_power: Power of a caption's distance 1 - cos in its weight, >= 0.
        rank: Rank of a patch, > 0.
        where: Weights with a patch; see `LECO`.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        steps: Number of updates a concept, >= 0.
        lr: Learning rate of AdamW, > 0.
        warm_up: Updates in which the learning rate rises to `lr`, >= 0.
        restarts: Times that it falls from there to 0 along a cosine, >= 0; 0 keeps it constant.
        batch_size: Start codes a step, > 0.
        trajectory_uses: Updates fed by one partial denoising, > 0; 1 in the code.
        prompts: "bare" trains on the target's name; "templates" on the name and its aliases in templates.
    """

    name: ClassVar[str] = "spm"
    source: ClassVar[str] = "arXiv:2312.16145, code 3dd762e"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "Apache-2.0"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "anchoring", "gate")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "lr": 1e-2, "warm_up": 0}

    gate: Literal["none", "transport"] = "none"
    negative_guidance: Annotated[float, Ge(0)] = 1.0
    anchoring: Annotated[float, Ge(0)] = 1000.0
    anchors: Anchors = "captions"
    anchor_count: Annotated[int, Ge(1)] = 4
    anchor_power: Annotated[float, Ge(0)] = 1.0
    rank: Annotated[int, Ge(1)] = 1
    where: Where = "blocks"
    start_guidance: Annotated[float, Ge(1)] = 3.0
    sample_steps: Annotated[int, Ge(1)] = 30
    steps: Annotated[int, Ge(0)] = 3000
    lr: Annotated[float, Gt(0)] = 1e-4
    warm_up: Annotated[int, Ge(0)] = 500
    restarts: Annotated[int, Ge(0)] = 3
    batch_size: Annotated[int, Ge(1)] = 1
    trajectory_uses: Annotated[int, Ge(1)] = 1
    prompts: PromptForm = "bare"

    @property
    def place(self) -> Stage:
        return "sampling" if self.gate == "transport" else "trained weights"

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> Edit:
        self.require(concepts, context.backbone)
        if self.gate == "transport" and SPMGuidance.needs not in context.backbone.abilities:
            raise InputError(
                f"spm.gate: expected 'none' for a model that the gate does not act on, {context.backbone.family}, got"
                f" {self.gate!r}. Leave it out."
            )
        fits = [self._patches(concept, context, i, len(concepts)) for i, concept in enumerate(concepts)]
        metadata = self.metadata(concepts, context)
        if self.gate == "none":
            changes = {
                name: LowRankChange(
                    up=torch.cat([fit[name].up for fit in fits], 1), down=torch.cat([fit[name].down for fit in fits])
                )
                for name in fits[0]
            }
            return WeightEdit(changes=changes, metadata=metadata)
        guidance = SPMGuidance(
            concepts=all_names(concepts),
            names=tuple(concept.names for concept in concepts),
            ups={name: torch.stack([fit[name].up for fit in fits]) for name in fits[0]},
            downs={name: torch.stack([fit[name].down for fit in fits]) for name in fits[0]},
        )
        return SamplingEdit(guidances=(guidance,), metadata=metadata)

    def _patches(self, concept: Concept, context: FitContext, place: int, total: int) -> dict[str, LowRankChange]:
        """Return the patches of one of `total` concepts, by weight."""
        shared = {name: getattr(self, name) for name in Anchored().as_settings() if hasattr(self, name)}
        trained = trained_matrices(context.backbone, self.where).__contains__
        task = TrainingTask(context=context, requests=(concept,), trained=trained, batch_size=self.batch_size)

        def report(progress: Progress) -> None:
            if context.on_progress is not None:
                done = place * self.steps + progress.done
                context.on_progress(replace(progress, done=done, total=total * self.steps))

        changes = finetune(
            context.backbone,
            trained,
            Anchored(away_from="anchor", **shared).loss(task),
            Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, warm_up=self.warm_up, restarts=self.restarts),
            on_progress=report,
            seed=context.seed,
        )
        return {name: change for name, change in changes.items() if isinstance(change, LowRankChange)}
