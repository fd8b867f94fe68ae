"""ESD, Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv:2303.07345)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.base import Backbone
from ..backbones.sites import Site, has_role
from ..concept import Concept
from ..edits import WeightEdit
from ..registry import Exactness
from ..sampling import scheduled_prediction
from ..training.context import FitContext, TrainingTask
from ..training.draws.prompt_pairs import PromptForm
from ..training.finetune import Loss, Optimisation, WeightedLoss
from ..training.objectives.guided import Guided, preserved_prompts
from ..training.selectors.roles import TEXT_ATTENTION, TEXT_KEYS_AND_VALUES
from ..training.shape import Shape
from ..training.student import Student
from ..training.trajectories import PartialTrajectories, encoded
from .base import Eraser, Work

Variant = Literal["x", "x-strict", "u", "full"]
Release = Literal["paper", "2023", "2025"]

# Left out of ESD-u by the training script of 2023, beside cross-attention: the layers that read the timestep (and, in
# SDXL, the sentence vector) and the output layers.
_NOT_IN_U = (*TEXT_ATTENTION, "time", "pooled", "out")
# Layers with trained parameters in the script of 2025.
_TRAINED_2025 = (nn.Linear, nn.Conv2d)


def _as_text(value: object) -> object:
    """Return a release as text; YAML reads a year as a number."""
    return str(value) if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class ESD(Eraser):
    """Fine-tuning of the denoiser towards its own negatively guided prediction.

    The formula, and its differences from the paper, are those of the objective
    `erasure.training.objectives.guided.Guided`.

    Attributes:
        release: Source of what the authors' scripts do differently. "paper": the model under training denoises, and the
            loss is at the timestep of the latents. "2023": the first script (commit 2704f9a of rohitgandikota/erasing),
            which redraws that timestep within its bin. "2025": the later one (ce8d4d9): the frozen model denoises, no
            normalisation layer is trained, "u" leaves out cross-attention alone, and by default 200 steps at 5e-5.
        variant: Trained weights. "x": the attention that reads text; "u": all else but the timestep embedding and the
            output layers, as the script of 2023 has it; "full": the denoiser; "x-strict": keys and values of
            that attention (the script of 2025).
        negative_guidance: Strength of the erasure (eta in the paper), >= 0. The option of that name in the script of
            2025 is one more: its 2 is 1 here.
        start_guidance: Scale of classifier-free guidance of the partial denoising, >= 1.
        sample_steps: Steps of the schedule of the partial denoising, > 0.
        steps: Number of updates, >= 0.
        lr: Learning rate of Adam, > 0.
        batch_size: Start codes a step, > 0; 1 in the paper.
        trajectory_uses: Updates fed by one partial denoising, > 0.
            Differs from the paper: 1 there.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
            Differs from the paper: "bare" there.
        rank: Rank of the patches that are trained instead of the weights, > 0; None trains the weights.
            Differs from the paper: none there.
        preserve_scale: Weight of a term that ties the predictions for what is preserved, and for the unconditional
            prompt, to those of the frozen model, >= 0.
            Differs from the paper: 0 there.
        shape: Further terms, transforms, selector and finishes.
            Differs from the paper: none there.
    """

    name: ClassVar[str] = "esd"
    source: ClassVar[str] = "arXiv:2303.07345"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "unknown"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "negative_guidance", "lr")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 3, "lr": 1e-3}
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {"release": {"2025": {"steps": 200, "lr": 5e-5}}}

    release: Annotated[Release, BeforeValidator(_as_text)] = "paper"
    variant: Variant = "x"
    negative_guidance: Annotated[float, Field(ge=0)] = 1.0
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    sample_steps: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=0)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 1
    trajectory_uses: Annotated[int, Field(ge=1)] = 1
    prompts: PromptForm = "bare"
    rank: Annotated[int, Field(ge=1)] | None = None
    preserve_scale: Annotated[float, Field(ge=0)] = 0.0
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        task = self._task(concepts, context)
        changes = self.shape.train(
            task,
            self._objective,
            Optimisation(steps=self.steps, lr=self.lr, rank=self.rank, optimizer="adam"),
            terms=[WeightedLoss(loss=self._preserving(task), weight=self.preserve_scale)],
        )
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def _task(self, concepts: Sequence[Concept], context: FitContext) -> TrainingTask:
        trained = trained_by(self.variant, context.backbone, self.release)
        return TrainingTask(
            context=context, requests=concepts, trained=trained.__contains__, batch_size=self.batch_size
        )

    @property
    def _objective(self) -> Guided:
        return Guided(
            negative_guidance=self.negative_guidance,
            start_guidance=self.start_guidance,
            sample_steps=self.sample_steps,
            trajectory_uses=self.trajectory_uses,
            prompts=self.prompts,
            denoiser="frozen" if self.release == "2025" else "student",
            pairing="bin" if self.release == "2023" else "exact",
        )

    def _preserving(self, task: TrainingTask) -> Loss:
        """Return the distance to the frozen model for what stays, at latents that the frozen model denoised."""
        backbone = task.backbone
        states = encoded(backbone, preserved_prompts(task.concepts, self.prompts))
        latents = PartialTrajectories(
            backbone,
            states,
            steps=self.sample_steps,
            guidance_scale=self.start_guidance,
            uses=self.trajectory_uses,
            batch_size=self.batch_size,
        )

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            x, timestep, rows = latents.next(generator)
            read = states.select(rows)
            with torch.no_grad():
                frozen = scheduled_prediction(backbone, x, timestep, read)
            return F.mse_loss(student(scheduled_prediction, backbone, x, timestep, read), frozen)

        return loss


def trained_by(variant: Variant, backbone: Backbone, release: Release = "paper") -> frozenset[str]:
    """Return the full names of the parameters that the variant trains."""
    sites = backbone.sites()
    if release == "2025":
        sites = {name: site for name, site in sites.items() if isinstance(_layer(backbone, site), _TRAINED_2025)}
    match variant:
        case "x":
            return frozenset(name for name, site in sites.items() if has_role(site, TEXT_ATTENTION))
        case "x-strict":
            return frozenset(name for name, site in sites.items() if has_role(site, TEXT_KEYS_AND_VALUES))
        case "u":
            left_out = TEXT_ATTENTION if release == "2025" else _NOT_IN_U
            return frozenset(name for name, site in sites.items() if not has_role(site, left_out))
        case "full":
            return frozenset(sites)


def _layer(backbone: Backbone, site: Site) -> nn.Module:
    component, _, layer = site.module.partition(".")
    return backbone.component(component).get_submodule(layer)
