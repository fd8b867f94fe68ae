"""A sampling-time eraser with its guidance: localised removal (see arXiv:2211.05105) that leaves the rest free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from erasure.backbones.schedule import Discrete, NoiseSchedule
from erasure.concept import Concept
from erasure.edits import EditMetadata, SamplingEdit
from erasure.erasers import Eraser
from erasure.guidance.localised import LocalisedRemoval
from erasure.progress import Progress
from erasure.registry import Exactness
from erasure.training.context import FitContext


@dataclass(frozen=True, kw_only=True)
class AddedGuidance(LocalisedRemoval):
    """Localised removal with the rest of the image left free."""

    name: ClassVar[str] = "added-guidance"
    outside: Literal["original", "free"] = "free"


@dataclass(frozen=True, kw_only=True)
class AddedSampling(Eraser):
    """Removal during sampling by `AddedGuidance`.

    Attributes:
        scale: Strength of the force away from the target's name, >= 0.
    """

    name: ClassVar[str] = "added-sampling"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    depends_on: ClassVar[Literal["text", "weights"]] = "text"
    schedules: ClassVar[tuple[type[NoiseSchedule], ...]] = (Discrete,)

    scale: Annotated[float, Field(ge=0)] = 1.0

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        guidances = [AddedGuidance(concepts=concept.names, scale=self.scale) for concept in concepts]
        if context.on_progress is not None:
            context.on_progress(Progress(done=1, total=1))
        metadata = EditMetadata.of(self.name, self.as_settings(), context.backbone, concepts, context.seed)
        return SamplingEdit(guidances=tuple(guidances), metadata=metadata)
