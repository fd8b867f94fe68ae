"""MACE, Mass Concept Erasure (Lu et al., CVPR 2024, arXiv:2403.06135).

Written from the paper and a description; the official code (commit 057e7a6) is under a non-commercial licence, and
nothing of it was copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Ability
from ..backbones.schedule import Discrete, Flow
from ..closed_form.caption_statistics import ordinary_captions, read_captions, square_root, statistics
from ..closed_form.coexisting import coexisting_rows, context_gram
from ..closed_form.joint import joined_rows
from ..closed_form.names import erased_pairs
from ..closed_form.problem import Row, Rows, TextMap
from ..closed_form.projections import projections
from ..closed_form.solve import ridge_edit_from_moments, solve
from ..concept import Concept
from ..edits import Change, DenseChange, LowRankChange, MapChange, WeightEdit
from ..progress import OnProgress, Progress, ProgressCounter
from ..prompts import fill, templates
from ..registry import Exactness
from ..training.context import FitContext
from ..training.finetune import Optimisation, below, finetune
from ..training.student import Student
from ..training.word_attention.masked import (
    Mask,
    WordImages,
    attention_of,
    focal_density,
    masked_attention,
    word_images,
)
from .base import Eraser, Work

Share = Annotated[float, Ge(0)]


@dataclass(frozen=True, kw_only=True)
class MACE(Eraser):
    """Closed-form refinement of the words around a name, one patch a concept against its own words, closed-form fusion.

    1. Refinement (eq. 1, 2). f are states of the words beside the name in prompts of the concept, g those of the same
       words beside the anchor, p states of ordinary captions; all key and value projections, by one map:

           sum_i |W' f_i - W g_i|^2 + preserve_scale sum_j |W' p_j - W p_j|^2 + reg |W' - W|_F^2

    2. One patch B D of rank 1 a concept, trained on top of W' so that the image does not attend to the concept's words
       (eq. 3): the sum over layers of |A * mask|_F, A the attention probabilities of the concept's tokens in noised
       images of it.
    3. Fusion (eq. 7). e are all states of each concept's prompts:

           sum_q sum_j |W* e_qj - (W' + B_q D_q) e_qj|^2 + preserve_scale sum_j |W* p_j - W p_j|^2 + reg |W* - W'|_F^2

    Differs from the paper: the pull `reg` of the code in both closed forms; masks are regions of the model's own
    attention to the words, in the place of Grounded-SAM's; templates are those of the kind; ordinary captions and
    preserved names are one preserved set, with one scale in both closed forms (the code multiplies the first one's
    twice). Published for objects: `preserve_scale=0`, `reg` 10 to 1000 by object, `lr=1e-5`; for celebrities
    `preserve_scale=1e-4, reg=0, lr=1e-4` with the captions of COCO; for nudity 120 steps, `focal=false`.

    Attributes:
        parts: All three parts, or the "refinement" alone, which some comparisons name MACE.
        preserve_scale: Weight of each state of the ordinary captions, >= 0.
        reg: Pull towards the old weights, > 0 (lamb in the code).
        captions: File of ordinary captions, one a line, or CSV with a column "caption" or "prompt"; "" takes everyday
            things and the preserved names.
        images: Images of each concept, > 0.
        mask: Pixels of the loss; "none" is the code's choice for styles.
        trailing: Whether the end of text and all positions after it are the concept's tokens too, as in the code.
        norm: Sum of the layers' norms, as in the code, or of their squares, "squared", as in the paper.
        focal: Whether timesteps are drawn near those that shape a concept (eq. 5); else all alike.
        focal_range: Timesteps between which they are drawn, of 1000.
        focal_slope: Steepness of the ends, > 0.
        rank: Rank of a patch, > 0.
        steps: Updates of each patch, >= 0.
        lr: Learning rate of AdamW, > 0.
    """

    name: ClassVar[str] = "mace"
    source: ClassVar[str] = "arXiv:2403.06135"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "non-commercial"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    needs: ClassVar[frozenset[Ability]] = frozenset(("maps",))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    together: ClassVar[bool] = True
    main: ClassVar[tuple[str, ...]] = ("steps", "lr", "reg")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "images": 2, "lr": 1e-2}

    parts: Literal["all", "refinement"] = "all"
    preserve_scale: Share = 0.1
    reg: Annotated[float, Gt(0)] = 10.0
    captions: str = ""
    images: Annotated[int, Ge(1)] = 8
    mask: Mask = "attention"
    trailing: bool = True
    norm: Literal["norm", "squared"] = "norm"
    focal: bool = True
    focal_range: tuple[Share, Share] = (200.0, 400.0)
    focal_slope: Annotated[float, Gt(0)] = 0.05
    rank: Annotated[int, Ge(1)] = 1
    steps: Annotated[int, Ge(0)] = 50
    lr: Annotated[float, Gt(0)] = 1e-4

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        metadata = self.metadata(concepts, context)
        texts = (lambda: read_captions(self.captions)) if self.captions else ordinary_captions(concepts)
        preserved = self.preserve_scale * statistics(context.backbone, texts, folder=context.history.memory).states
        refined = MapChange(map=self.refinement(concepts, context, preserved))
        names = projections(context.backbone, "all")
        text = WeightEdit(changes=dict.fromkeys(names, refined), metadata=metadata)
        if self.parts == "refinement":
            if context.on_progress is not None:
                context.on_progress(Progress(done=1, total=1))
            return WeightEdit(changes=self._dense(text, context), metadata=metadata)
        counter = ProgressCounter(context.on_progress, len(concepts), stage="images")
        images: list[WordImages] = []
        for concept in concepts:
            images.append(self._images(concept, context))
            counter.add()
        with text.applied_to(context.backbone.pipe, check=False):
            patches = [
                self._patch(each, names, replace(context, on_progress=_counted_on(context.on_progress, i, len(images))))
                for i, each in enumerate(images)
            ]
        contexts = [context_gram(context.backbone, [prompt for prompt, _ in _prompts(concept)]) for concept in concepts]
        weights = context.backbone.parameters(frozenset(names).__contains__)
        changes: dict[str, Change] = {}
        for name, parameter in weights.items():
            weight = parameter.detach().to("cpu", torch.float64)
            loras = [patch[name].of(weight) for patch in patches]
            fused = fusion(weight, weight + refined.of(weight), loras, contexts, preserved, self.reg)
            changes[name] = DenseChange(delta=(fused - weight).float())
        return WeightEdit(changes=changes, metadata=metadata)

    def refinement(
        self, concepts: Sequence[Concept], context: FitContext, preserved: Float[Tensor, "dim dim"]
    ) -> TextMap:
        """Return the map of part 1, which moves the words around the names and leaves those of the names free.

        Args:
            concepts: Concepts.
            context: Surroundings of the fit.
            preserved: Weighted sum of p p^T.
        """
        pairs = [pair for concept in concepts for pair in erased_pairs(concept, in_templates=True)]
        kept = [
            Row(label="", site=f"captions|{i}", state=state, weight=1.0, anchor_label="", anchor=state)
            for i, state in enumerate(square_root(preserved) if bool(preserved.any()) else ())
        ]
        rows = Rows.of(coexisting_rows(context.backbone, pairs), kept, reg=self.reg, dim=len(preserved))
        return solve(joined_rows([rows]))

    def _images(self, concept: Concept, context: FitContext) -> WordImages:
        generator = torch.Generator().manual_seed(context.seed)
        prompts = _prompts(concept)
        chosen = [prompts[below(len(prompts), generator)] for _ in range(self.images)]
        return word_images(
            context.backbone,
            chosen,
            generator,
            mask=self.mask,
            trailing=self.trailing,
            timestep=int(sum(self.focal_range) / 2 / 1000 * context.backbone.schedule.total),
        )

    def _patch(
        self, images: WordImages, names: Sequence[str], context: FitContext
    ) -> dict[str, DenseChange | LowRankChange]:
        """Return the patch of part 2, trained on the weights that are in force."""
        total = context.backbone.schedule.total
        density = torch.ones(total, dtype=torch.float64)
        if self.focal:
            first, last = (bound / 1000 * total for bound in self.focal_range)
            density = focal_density(total, first, last, self.focal_slope * 1000 / total)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            row = below(len(images.tokens), generator)
            timestep = int(torch.multinomial(density, 1, generator=generator))
            maps = attention_of(student, context.backbone, images, row, timestep, generator)
            return masked_attention(maps, images.masks[row], self.norm)

        return finetune(
            context.backbone,
            frozenset(names).__contains__,
            loss,
            Optimisation(steps=self.steps, lr=self.lr, rank=self.rank),
            on_progress=context.on_progress,
            seed=context.seed,
        )

    def _dense(self, edit: WeightEdit, context: FitContext) -> dict[str, DenseChange]:
        """Return an edit's changes as numbers, which stay what they are on other weights beneath them."""
        weights = context.backbone.parameters(edit.changes.__contains__)
        return {
            name: DenseChange(delta=edit.changes[name].of(weight.detach().cpu()).float())
            for name, weight in weights.items()
        }


def _counted_on(on_progress: OnProgress | None, before: int, parts: int) -> OnProgress | None:
    """Return a receiver that counts the items of several parts as those of one stage."""
    if on_progress is None:
        return None
    return lambda progress: on_progress(
        replace(progress, done=before * progress.total + progress.done, total=parts * progress.total)
    )


def fusion(
    weight: Float[Tensor, "out dim"],
    refined: Float[Tensor, "out dim"],
    patches: Sequence[Float[Tensor, "out dim"]],
    contexts: Sequence[Float[Tensor, "dim dim"]],
    preserved: Float[Tensor, "dim dim"],
    reg: float,
) -> Float[Tensor, "out dim"]:
    """Return the W* of part 3.

    Args:
        weight: W, which preserved states keep.
        refined: W'.
        patches: B_q D_q of each concept.
        contexts: Sum of e e^T over the states of each concept's prompts.
        preserved: Weighted sum of p p^T.
        reg: Pull towards W'.
    """
    gram, cross = preserved.clone(), weight @ preserved
    for patch, states in zip(patches, contexts, strict=True):
        gram += states
        cross += (refined + patch) @ states
    return ridge_edit_from_moments(refined, gram, cross, reg)


def _prompts(concept: Concept) -> list[tuple[str, str]]:
    """Return the prompts of a concept's names, each with the name in it."""
    return [(fill(template, name), name) for name in concept.names for template in templates(concept.kind)]
