"""An eraser that takes the direction of each target out of every layer that reads text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from erasure.concept import Concept
from erasure.edits import EditMetadata, LowRankChange, WeightEdit
from erasure.erasers import Eraser
from erasure.progress import Progress
from erasure.registry import Exactness
from erasure.training.context import FitContext


@dataclass(frozen=True, kw_only=True)
class AddedEraser(Eraser):
    """Projection W' = W - strength W u u^T for the unit direction u of the target's end-of-text state.

    Attributes:
        strength: Share of the direction that is taken out, >= 0.
    """

    name: ClassVar[str] = "added-eraser"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    depends_on: ClassVar[Literal["text", "weights"]] = "weights"

    strength: Annotated[float, Field(ge=0)] = 1.0

    @torch.no_grad()
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> WeightEdit:
        self.require(concepts, context.backbone)
        backbone = context.backbone
        states = backbone.encode([name for concept in concepts for name in concept.names]).end_states
        directions, _ = torch.linalg.qr(states.cpu().double().T)
        changes = {
            name: LowRankChange(
                up=(-self.strength * weight.double().cpu() @ directions).float(), down=directions.T.float()
            )
            for name, weight in backbone.parameters(backbone.sites(reads="text").__contains__).items()
            if weight.ndim == 2 and weight.shape[1] == len(directions)
        }
        if context.on_progress is not None:
            context.on_progress(Progress(done=1, total=1))
        metadata = EditMetadata.of(self.name, self.as_settings(), backbone, concepts, context.seed)
        return WeightEdit(changes=changes, metadata=metadata)
