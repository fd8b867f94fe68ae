"""GEM (Grebe et al., ICML 2026, arXiv:2606.00140).

The paper's abstract and a description of the official code (commit aeddf57, MIT) are the sources; the paper's body may
differ. Nothing here is copied from that code.
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
from ..training.objectives.nearer import Nearer
from ..training.shape import Shape
from .base import Eraser, Work

_IMAGE = ("cross.q", "cross.k", "joint.q", "joint.k")
_TEXT = ("joint.text.q", "joint.text.k")
_SHARED = ("shared.q", "shared.k")


@dataclass(frozen=True, kw_only=True)
class GEM(Eraser):
    """Patches of queries and keys that bring predictions nearer to the anchor's than to the original ones.

    The loss is that of the objective `erasure.training.objectives.nearer.Nearer`: it stops where the prediction is
    nearer to the anchor's, which with `repel` 1 is half way. An update follows one path of the model under training.

    Differs from the code: no dropout in the patches, and latents of a batch may have prompts of several concepts.

    Attributes:
        repel: Weight of the distance to the original prediction (eta), in [0, 1].
        margin: Share of the whole way that is asked for beyond half of it (ours), in [0, 1].
        scale: Factor of the loss (gamma), > 0.
        until: Share of the sampler's steps that a path has, in (0, 1].
        sample_steps: Steps of the sampler, > 0; 40 on Stable Diffusion 3.
        start_guidance: Scale of classifier-free guidance of the paths, >= 1; a comment of the code says that the paper
            has 7.
        denoiser: Model of the paths: the "student", the model under training, or the "frozen" one.
        streams: Projections that are trained: those of the "image" alone, or "both" of image and text. Cross-attention
            has only the first; a model whose blocks are all shared is trained in these.
        prompts: "bare" trains on the target's name, "templates" on the name and its aliases in the templates of the
            concept's kind.
        steps: Number of updates, >= 0; 23 paths are the code's budget of 250 timesteps.
        lr: Learning rate of AdamW, > 0; 2e-4 on Stable Diffusion 3.
        batch_size: Paths a step, > 0.
        rank: Rank of the patches, > 0.
        shape: Further terms, transforms, selector and finishes (ours).
    """

    name: ClassVar[str] = "gem"
    source: ClassVar[str] = "arXiv:2606.00140"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "MIT"
    work: ClassVar[frozenset[Work]] = frozenset(("training",))
    main: ClassVar[tuple[str, ...]] = ("steps", "repel", "lr")
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2, "sample_steps": 4, "until": 0.5, "start_guidance": 1.0}

    repel: Annotated[float, Field(ge=0, le=1)] = 1.0
    margin: Annotated[float, Field(ge=0, le=1)] = 0.0
    scale: Annotated[float, Field(gt=0)] = 100.0
    until: Annotated[float, Field(gt=0, le=1)] = 0.4
    sample_steps: Annotated[int, Field(ge=1)] = 28
    start_guidance: Annotated[float, Field(ge=1)] = 3.0
    denoiser: Literal["student", "frozen"] = "student"
    streams: Literal["image", "both"] = "image"
    prompts: PromptForm = "bare"
    steps: Annotated[int, Field(ge=0)] = 23
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 16
    shape: Shape = field(default_factory=Shape)

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        trained = self.trained(backbone).__contains__
        task = TrainingTask(context=context, requests=concepts, trained=trained, batch_size=self.batch_size)
        changes = self.shape.train(task, self._objective, Optimisation(steps=self.steps, lr=self.lr, rank=self.rank))
        return self.shape.finished(WeightEdit(changes=changes, metadata=self.metadata(concepts, context)), task)

    def trained(self, backbone: Backbone) -> frozenset[str]:
        """Return the full names of the parameters that are trained."""
        roles = (*_IMAGE, *_TEXT) if self.streams == "both" else _IMAGE
        return frozenset(backbone.sites(roles) or backbone.sites(_SHARED))

    @property
    def _objective(self) -> Nearer:
        return Nearer(
            repel=self.repel,
            margin=self.margin,
            scale=self.scale,
            until=self.until,
            sample_steps=self.sample_steps,
            start_guidance=self.start_guidance,
            prompts=self.prompts,
            denoiser=self.denoiser,
        )
