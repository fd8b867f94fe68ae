"""HiRM, High-level Representation Misdirection (Lee et al., ICLR 2026, arXiv:2602.19631).

Known from one detailed note and the README of the official repository; its code was not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..backbones.base import Ability
from ..backbones.text_blocks import clip_encoders, first_block, last_block, token_ids
from ..concept import Concept
from ..edits import WeightEdit
from ..prompts import anchored_prompts
from ..registry import Exactness
from ..training.context import FitContext
from ..training.finetune import Optimisation, finetune
from ..training.student import Student
from .base import Eraser, Stage, Work


@dataclass(frozen=True, kw_only=True)
class HiRM(Eraser):
    """Training of the first block of each CLIP text encoder so that the last block's states of a name go elsewhere.

    With h_t the output of the last block at position t of a prompt of the concept, it minimises

        (1 / T) sum_t |h_t - scale g_t|^2

    by gradients of the first block alone; there is no term for what stays, and the denoiser is not touched. The goal g:

    - "anchor" (HiRM-S): the frozen encoder's state of the anchor's prompt at the same position;
    - "random" (HiRM-R): a random unit vector for each position.

    Differs from the paper: the start of text is left out of the sum by default (`positions`), because every prompt has
    that state; the goal of nudity, a direction, is not offered. Open in the sources: the optimiser (AdamW here) and
    whether h is the whole block's output (here) or its attention's. Published are `positions="all"` and
    `lr=5e-5, steps=25` ("random", objects), 15 ("anchor", objects), 40 and 30 (styles).

    Attributes:
        goal: Goal of the states, see above.
        scale: Factor of the goal, > 0 (k); 1 for "anchor", 500 for "random".
        prompts: Prompts of the concept: the "bare" names, as published, or the "templates" of its kind.
        positions: Positions of the sum: "all", or those after the "start" of text.
        steps: Number of updates, >= 0.
        lr: Learning rate of AdamW, > 0; 1e-4 for nudity.
    """

    name: ClassVar[str] = "hirm"
    source: ClassVar[str] = "arXiv:2602.19631"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "unknown"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    stage: ClassVar[Stage] = "text encoder"
    together: ClassVar[bool] = False
    needs: ClassVar[frozenset[Ability]] = frozenset(("clip",))
    main: ClassVar[tuple[str, ...]] = ("goal", "steps", "lr")
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "goal": {"random": {"scale": 500.0, "steps": 25}}
    }
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "lr": 1e-3}

    goal: Literal["anchor", "random"] = "anchor"
    scale: Annotated[float, Gt(0)] = 1.0
    prompts: Literal["bare", "templates"] = "bare"
    positions: Literal["all", "after-start"] = "after-start"
    steps: Annotated[int, Ge(0)] = 15
    lr: Annotated[float, Gt(0)] = 5e-5

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        generator = torch.Generator().manual_seed(context.seed)
        goals = self._goals(concepts, context, generator)
        encoders = clip_encoders(backbone)

        def loss(student: Student, step: int, draws: torch.Generator) -> Float[Tensor, ""]:
            return torch.stack(
                [self.distance(student(last_block, encoders[name], ids), goal) for name, (ids, goal) in goals.items()]
            ).sum()

        trained = {name for encoder in encoders for name in first_block(backbone, encoder)}
        changes = finetune(
            backbone,
            trained.__contains__,
            loss,
            Optimisation(steps=self.steps, lr=self.lr),
            on_progress=context.on_progress,
            seed=context.seed,
        )
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)

    def distance(
        self, states: Float[Tensor, "n tokens dim"], goal: Float[Tensor, "#n tokens dim"]
    ) -> Float[Tensor, ""]:
        """Return the mean over prompts and positions of |h_t - scale g_t|^2."""
        first = 0 if self.positions == "all" else 1
        return (states - self.scale * goal.to(states))[:, first:].square().sum(dim=-1).mean()

    @torch.no_grad()
    def _goals(
        self, concepts: Sequence[Concept], context: FitContext, generator: torch.Generator
    ) -> dict[str, tuple[Int[Tensor, "n tokens"], Float[Tensor, "..."]]]:
        """Return by encoder the ids of the concepts' prompts and g of each position."""
        pairs = self._pairs(concepts)
        goals: dict[str, tuple[Tensor, Tensor]] = {}
        with context.original():
            for name, encoder in clip_encoders(context.backbone).items():
                ids, others = (token_ids(context.backbone, name, prompts) for prompts in zip(*pairs, strict=True))
                frozen = last_block(encoder, others)
                if self.goal == "random":
                    drawn = torch.randn(1, *frozen.shape[1:], generator=generator)
                    frozen = F.normalize(drawn, dim=-1)
                goals[name] = (ids, frozen)
        return goals

    def _pairs(self, concepts: Sequence[Concept]) -> list[tuple[str, str]]:
        """Return each prompt of the concepts with the anchor's, in an order that does not depend on theirs."""
        if self.prompts == "bare":
            pairs = [(name, concept.anchor) for concept in concepts for name in concept.names]
        else:
            pairs = [pair for concept in concepts for pair in anchored_prompts(concept)]
        return sorted(set(pairs))
