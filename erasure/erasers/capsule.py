"""Capsules: gates on a concept's direction in cross-attention, during sampling (KIF, arXiv:2601.10566)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval, Lt

from ..backbones.base import Ability
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.capsule import Capsule, CapsuleGuidance
from ..progress import Progress
from ..registry import Exactness
from ..training.context import FitContext, TrainingTask
from ..training.objectives.signature import Signature
from .base import Eraser, Stage, Work, all_names


@dataclass(frozen=True, kw_only=True)
class CapsuleEraser(Eraser):
    """Gates that take a concept's direction off the pixels that show it, read off images of it and of its neighbours.

    The direction and the gate of each layer are those of the objective
    `erasure.training.objectives.signature.Signature`, which distils them into the weights; here nothing is trained.

    Differs from the paper: images and cross-attention take the place of texts and their layers.

    Attributes:
        alpha: Share of the direction that an open gate adds, < 0; -1 takes it away.
        sharpness: Slope of the gate, >= 0; 0 opens every gate half.
        neighbours: Number of preserved names that stand for all, the nearest as text, > 0.
        share: Share of the layers that are gated, those that tell the concept best, in (0, 1].
        images: Images of the concept and of each neighbour, > 0.
        image_steps: Sampling steps of an image, > 0.
        early: Share of the schedule at whose noise the images are read, the noisiest part, in (0, 1].
        only_named: Whether prompts that name none of the concepts are left alone.
    """

    name: ClassVar[str] = "capsule"
    source: ClassVar[str] = "arXiv:2601.10566"
    exactness: ClassVar[Exactness] = "reconstructed"
    work: ClassVar[frozenset[Work]] = frozenset(("images",))
    stage: ClassVar[Stage] = "sampling"
    needs: ClassVar[frozenset[Ability]] = frozenset(("unet guidance", "maps"))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    main: ClassVar[tuple[str, ...]] = ("alpha", "share", "sharpness")
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2, "share": 1.0, "sharpness": 0.0}

    alpha: Annotated[float, Lt(0)] = -1.0
    sharpness: Annotated[float, Ge(0)] = 4.0
    neighbours: Annotated[int, Ge(1)] = 8
    share: Annotated[float, Interval(gt=0, le=1)] = 1 / 3
    images: Annotated[int, Ge(1)] = 16
    image_steps: Annotated[int, Ge(1)] = 25
    early: Annotated[float, Interval(gt=0, le=1)] = 0.7
    only_named: bool = False

    @property
    def reflects(self) -> bool:
        return self.alpha < -1

    @torch.no_grad()
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        parts = [
            self._of_one(
                concept,
                self._signature.capsules(
                    TrainingTask(context=context, requests=(concept,), trained=lambda name: False)
                ),
            )
            for concept in concepts
        ]
        if context.on_progress is not None:
            context.on_progress(Progress(done=1, total=1))
        metadata = self.metadata(concepts, context)
        return SamplingEdit(guidances=CapsuleGuidance.merged(parts), metadata=metadata)

    @property
    def _signature(self) -> Signature:
        shared = ("neighbours", "share", "images", "image_steps", "early")
        return Signature(**{name: getattr(self, name) for name in shared})

    def _of_one(self, concept: Concept, capsules: Mapping[str, Capsule]) -> CapsuleGuidance:
        """Return the guidance of one concept."""
        return CapsuleGuidance(
            concepts=all_names([concept]),
            targets=(concept.target,),
            alpha=self.alpha,
            sharpness=self.sharpness,
            only_named=self.only_named,
            directions={layer: each.direction[None, None].float().cpu() for layer, each in capsules.items()},
            gates={
                layer: torch.tensor([[each.mean, each.deviation, each.threshold]]) for layer, each in capsules.items()
            },
        )
