"""EraseFlow (Kusumba et al., NeurIPS 2025, arXiv:2511.00804).

The paper's abstract, notes on its formulas and a description of the official code (commit 127bcb1) are the sources.
Nothing here is copied from that code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Backbone
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Optimisation
from ..training.objectives.anchor_paths import AnchorPaths
from ..training.shape import Shape
from .base import Eraser, Work

# Queries, keys, values and outputs of every attention layer.
_ATTENTION = tuple(
    f"{layer}.{part}" for layer in ("self", "cross", "joint", "joint.text", "shared") for part in ("q", "k", "v", "out")
)


@dataclass(frozen=True, kw_only=True)
class EraseFlow(Eraser):
    """Patches of all attention layers with which the target's prompt gives the anchor's trajectories.

    Both losses, and their differences from the paper and the code, are those of the objective
    `erasure.training.objectives.anchor_paths.AnchorPaths`.

    Attributes:
        objective: "trajectory balance", as published, or "matching", which is at its least where the target's chain is
            the anchor's.
        density: Log densities and divergences are the "mean" over the entries of the latents, as in the code, or their
            "sum", as in the paper's equations.
        log_beta: Logarithm of the reward, in the unit of `density`; None measures the anchor's own.
        log_z: Logarithm of the normaliser.
        transitions: Steps of a path in one update, > 0.
        sample_steps: Steps of the sampler, > 1.
        path_guidance: Scale of classifier-free guidance of the paths, >= 1.
        density_guidance: Scale of that inside the densities, >= 1.
        fresh: Number of first updates that draw paths, > 0; later ones take the last path again.
        path_uses: Updates fed by one path, > 0.
        denoiser: Model of the paths: the "student", the model under training, as in the code, or the "frozen" one.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        steps: Number of updates, >= 0.
        lr: Learning rate of AdamW, > 0.
        weight_decay: Weight decay of AdamW, >= 0.
        clip_norm: Largest norm of the gradient, > 0.
        batch_size: Paths a step, > 0.
        rank: Rank of the patches, > 0; 32 on FLUX and Stable Diffusion 3.
        shape: Further terms, transforms, selector and finishes (ours).
    """

    name: ClassVar[str] = "eraseflow"
    source: ClassVar[str] = "arXiv:2511.00804"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "unknown"
    work: ClassVar[frozenset[Work]] = frozenset(("training", "images"))
    main: ClassVar[tuple[str, ...]] = ("objective", "steps", "log_beta")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "path_guidance": 1.0, "lr": 1e-3}
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {"density": {"sum": {"log_beta": 83.0}}}

    objective: Literal["trajectory balance", "matching"] = "trajectory balance"
    density: Literal["mean", "sum"] = "mean"
    log_beta: float | None = 2.5
    log_z: float = -0.1953
    transitions: Annotated[int, Field(ge=1)] = 20
    sample_steps: Annotated[int, Field(ge=2)] = 50
    path_guidance: Annotated[float, Field(ge=1)] = 5.0
    density_guidance: Annotated[float, Field(ge=1)] = 1.0
    fresh: Annotated[int, Field(ge=1)] = 20
    path_uses: Annotated[int, Field(ge=1)] = 1
    denoiser: Literal["student", "frozen"] = "student"
    prompts: PromptForm = "bare"
    steps: Annotated[int, Field(ge=0)] = 20
    lr: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 4
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = attended(backbone).__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, batch_size=self.batch_size)
        decay, clip = self.weight_decay, self.clip_norm
        optimisation = Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, weight_decay=decay, clip_norm=clip)
        changes = self.shape.train(task, self._objective, optimisation)
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    @property
    def _objective(self) -> AnchorPaths:
        return AnchorPaths(
            form="matching" if self.objective == "matching" else "balance",
            density=self.density,
            log_beta=self.log_beta,
            log_z=self.log_z,
            transitions=self.transitions,
            sample_steps=self.sample_steps,
            path_guidance=self.path_guidance,
            density_guidance=self.density_guidance,
            fresh=self.fresh,
            path_uses=self.path_uses,
            denoiser=self.denoiser,
            prompts=self.prompts,
        )


def attended(backbone: Backbone) -> frozenset[str]:
    """Return the full names of the projections of all attention layers."""
    return frozenset(backbone.sites(_ATTENTION))
