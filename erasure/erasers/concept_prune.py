"""ConceptPrune: feed-forward weights that serve a concept, set to zero (Chavhan et al., ICLR 2025, arXiv:2405.19237).

Its official code (commit 72927d9) has no licence; nothing here is copied from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from jaxtyping import Bool, Float
from torch import Tensor

from ..backbones.conditioning import concatenate
from ..backbones.layer_readings import watched_inputs
from ..concept import Concept
from ..edits import DenseChange, WeightEdit
from ..errors import InputError
from ..progress import Progress
from ..registry import Exactness
from ..sampling.latents import noise, trajectory_latents
from ..training.context import FitContext
from ..training.trajectories import encoded
from ..training.word_attention.output_directions import prompt_pairs
from ..typed_torch import vector_norm
from .base import Eraser, Work

_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class ConceptPrune(Eraser):
    """Pruning of the weights that matter more for prompts with the concept than for the same prompts without it.

    For the second linear layer W of each feed-forward block, the score of a weight at a step is Wanda's,
    |W_kj| n_j, with n_j the norm of column j of the layer's inputs over all pixels, prompts and seeds. A weight is
    skilled at a step if its score with the concept is above that without it, and among the largest of its row:

        W'_kj = 0 where W_kj is skilled at more than `agreement` of the first `steps` steps, else W_kj

    Differs from the paper: the prompts without a concept with an anchor have the anchor; prompts are those of this
    library's kinds.

    Attributes:
        share: Share of a row's weights that can be skilled at a step (rho, `skill_ratio`), in (0, 1].
        steps: First steps of the schedule that count (tau), > 0; at most `sample_steps`.
        sample_steps: Steps of the whole schedule, > 0.
        agreement: Share of the steps at which a weight must be skilled, in [0, 1]: 0 is any step, 1 is all of them.
        pairs: Number of pairs of prompts, > 0.
        guidance_scale: Scale of classifier-free guidance, >= 1.
        guidance_rows: Whether the inputs for the unconditional prompt count as well, as in the code.
        unit_rows: Whether an input is brought to unit length before the norms are taken, as in the code; Wanda does
            not.
    """

    name: ClassVar[str] = "concept-prune"
    source: ClassVar[str] = "arXiv:2405.19237, code 72927d9"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "none"
    work: ClassVar[frozenset[Work]] = frozenset(("images",))
    main: ClassVar[tuple[str, ...]] = ("share", "steps", "agreement")
    quick: ClassVar[Mapping[str, Any]] = {"pairs": 2, "steps": 2, "sample_steps": 2, "share": 0.1}

    share: Annotated[float, Interval(gt=0, le=1)] = 0.01
    steps: Annotated[int, Ge(1)] = 10
    sample_steps: Annotated[int, Ge(1)] = 50
    agreement: Annotated[float, Interval(ge=0, le=1)] = 0.0
    pairs: Annotated[int, Ge(1)] = 10
    guidance_scale: Annotated[float, Ge(1)] = 7.5
    guidance_rows: bool = True
    unit_rows: bool = True

    def __post_init__(self) -> None:
        if self.steps > self.sample_steps:
            raise InputError(
                f"concept-prune.steps: expected at most sample_steps, {self.sample_steps}, got {self.steps!r}."
                " Lower it."
            )

    @torch.no_grad()
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        sites = backbone.sites(("ff.out",))
        weights = {name: weight for name, weight in backbone.parameters(sites.__contains__).items() if weight.ndim == 2}
        if not weights:
            raise InputError(
                f"concept-prune: expected a model with linear feed-forward layers, got {backbone.family}."
                " Use another eraser."
            )
        masks = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
        batches = -(-self.pairs // _AT_ONCE)
        for i, concept in enumerate(concepts):
            sums: list[dict[str, Tensor]] = [{}, {}]
            pairs = prompt_pairs(concept, "templates", self.pairs)
            for batch in range(batches):
                some = pairs[batch * _AT_ONCE : (batch + 1) * _AT_ONCE]
                sides = ([pair.named for pair in some], [pair.without for pair in some])
                for total, prompts in zip(sums, sides, strict=True):
                    self._add(total, prompts, list(weights), context, batch * _AT_ONCE)
                if context.on_progress is not None:
                    context.on_progress(Progress(done=i * batches + batch + 1, total=len(concepts) * batches))
            target, base = ({name: each.sqrt() for name, each in total.items()} for total in sums)
            for name, weight in weights.items():
                masks[name] |= self.skilled(weight.detach().cpu(), target[name], base[name])
        changes = {
            name: DenseChange(delta=torch.where(mask, -weights[name].detach().cpu().float(), 0.0))
            for name, mask in masks.items()
            if mask.any()
        }
        metadata = self.metadata(concepts, context)
        return WeightEdit(changes=changes, metadata=metadata)

    def skilled(
        self, weight: Float[Tensor, "out dim"], target: Float[Tensor, "steps dim"], base: Float[Tensor, "steps dim"]
    ) -> Bool[Tensor, "out dim"]:
        """Return the weights to prune, from the norms of the inputs with and without the concept."""
        count = ceil(self.share * weight.shape[1])
        times = torch.zeros(weight.shape)
        for with_concept, without in zip(target, base, strict=True):
            scores = weight.double().abs() * with_concept
            largest = torch.zeros(weight.shape, dtype=torch.bool)
            largest.scatter_(1, scores.topk(count, dim=1).indices, True)
            times += largest & (scores > weight.double().abs() * without)
        return times > min(self.agreement * len(target), len(target) - 1)

    def _add(
        self, sums: dict[str, Tensor], prompts: Sequence[str], names: Sequence[str], context: FitContext, first: int
    ) -> None:
        """Add the squares of the inputs for some prompts to the sums of each layer and step."""
        backbone = context.backbone
        read, free = encoded(backbone, prompts), backbone.unconditional().expand(len(prompts))
        seeds = [torch.Generator().manual_seed(context.seed + first + i) for i in range(len(prompts))]
        stops = range(self.steps)
        latents = trajectory_latents(
            backbone,
            noise(seeds, backbone.latent_shape()),
            read,
            backbone.unconditional(),
            steps=self.sample_steps,
            guidance_scale=self.guidance_scale,
            stops=stops,
        )
        timesteps = backbone.schedule.timesteps(self.sample_steps).to(backbone.device)
        both = concatenate([free, read]) if self.guidance_rows else read
        for stop in stops:
            at_stop = torch.cat([latents[stop]] * (2 if self.guidance_rows else 1))
            with watched_inputs(backbone, names) as inputs:
                backbone.predict(at_stop.to(backbone.dtype), timesteps[stop], both)
            for name, rows in inputs.items():
                squares = self.squares(rows).cpu()
                whole = sums.setdefault(name, torch.zeros(self.steps, len(squares), dtype=torch.float64))
                whole[stop] += squares

    def squares(self, rows: Float[Tensor, "rows dim"]) -> Float[Tensor, " dim"]:
        """Return the sum of the squares of each column of a layer's inputs."""
        rows = rows.double()
        if self.unit_rows:
            rows = rows / vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12)
        return rows.square().sum(0)
