"""CUBER's backward transfer between removals (arXiv:2211.00789)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.layer_readings import input_moments
from ...concept import Concept
from ...io.tensor_cache import stored
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.noised_images import NoisedImages
from ..draws.sensitivity import erasing_gradients
from ..finetune import Gradient, GradientMap
from .base import Transform

_BATCHES = 8  # of the gradient at the end of a removal


@dataclass(frozen=True, kw_only=True)
class Transfer(Transform):
    """The main gradient of linear layers without its part in the input space of earlier removals, unless it helps them.

        part_j(g) = g B_j B_j^T;   g_e <- g_e - part_j(g_e)
            if |part_j(g_e)| <= share |g_e|, or <g_j, g_e> <= alignment |g_j| |g_e|

    for each earlier removal j and trained weight (out, in) in turn. B_j (in, k) are the main directions, of `energy` of
    all, of the layer's inputs at noised images of j under its prompts, g_j the gradient of j's plain erasing loss; both
    at the weights that this removal starts from, kept in the ledger's memory. A patch has it on `down`. Without earlier
    removals there is no map. To first order, and for the gradient alone: Adam rescales each entry.

    Differs from the paper: a part that reaches far and does not help is taken out as well, where the paper scales the
    weight for each task, for a prompt does not say which removal it belongs to; the penalty on a part that is left in,
    |(W - W_0) B_j B_j^T|, is left out, as each step is judged anew.

    Attributes:
        share: Share of the gradient up to which its part in an earlier space is taken out, in [0, 1] (epsilon_1).
        alignment: Cosine with the earlier removal's gradient above which a larger part stays, in [-1, 1] (epsilon_2).
        energy: Share of the inputs' energy that their main directions hold, in (0, 1].
        images: Images of each earlier target, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "transfer"
    source: ClassVar[str] = "arXiv:2211.00789"
    exactness: ClassVar[Exactness] = "reconstructed"
    quick: ClassVar[Mapping[str, Any]] = {"images": 2, "image_steps": 2}

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    alignment: Annotated[float, Field(ge=-1, le=1)] = 0.0
    energy: Annotated[float, Field(gt=0, le=1)] = 0.95
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25

    def prepared(self, task: TrainingTask) -> GradientMap | None:
        if not task.context.targets:
            return None
        return Regimes([self._space(task, concept) for concept in task.context.targets], self.share, self.alignment)

    def _space(self, task: TrainingTask, concept: Concept) -> "RemovalSpace":
        """Return the input space and the gradient of an earlier removal."""
        names = sorted(task.backbone.parameters(task.trained))
        key = [task.backbone.fingerprint(), concept.as_json(), names, self.as_settings(), task.context.seed]
        tensors = stored(task.context.history.memory, key, lambda: self._measured(task, concept))
        parts: dict[str, dict[str, Tensor]] = {"directions": {}, "gradient": {}}
        for name, tensor in tensors.items():
            part, _, weight = name.partition("/")
            parts[part][weight] = tensor
        return RemovalSpace(directions=parts["directions"], gradient=parts["gradient"])

    def _measured(self, task: TrainingTask, concept: Concept) -> dict[str, Tensor]:
        backbone = task.backbone
        images = NoisedImages(task.context, [concept], images=self.images, image_steps=self.image_steps)
        batch = images.noised(range(self.images), torch.Generator().manual_seed(task.context.seed))
        weights = [name for name in backbone.parameters(task.trained) if name.endswith(".weight")]

        def run() -> None:
            scheduled_prediction(backbone, batch.latents, batch.timesteps, batch.named)

        moments = input_moments(backbone, weights, run)
        present = replace(task, reference=nullcontext)
        gradients = erasing_gradients(
            present, [concept], batches=_BATCHES, images=self.images, image_steps=self.image_steps
        )
        directions = {f"directions/{name}": main_inputs(moment, self.energy) for name, moment in moments.items()}
        return directions | {f"gradient/{name}": gradients[name].flatten(1) for name in moments}


@dataclass(frozen=True, kw_only=True, eq=False)
class RemovalSpace:
    """Linear layers as an earlier removal uses them, by parameter name.

    Attributes:
        directions: Orthonormal directions B of the inputs (in, k).
        gradient: Gradient of the erasing loss (out, in).
    """

    directions: Mapping[str, Float[Tensor, "in k"]]
    gradient: Mapping[str, Float[Tensor, "out in"]]


class Regimes(GradientMap):
    """CUBER's regimes for each earlier removal and weight.

    Args:
        spaces: Earlier removals, in order.
        share: See `Transfer`.
        alignment: See `Transfer`.
    """

    def __init__(self, spaces: Sequence[RemovalSpace], share: float, alignment: float) -> None:
        self._spaces, self._share, self._alignment = spaces, share, alignment
        self._removed, self._seen = 0, 0

    def __call__(self, erase: Gradient, keep: Gradient, step: int) -> tuple[Gradient, Gradient]:
        corrected = dict(erase)
        for space in self._spaces:
            for leaf, gradient in corrected.items():
                if leaf.name in space.directions and leaf.part != "up":
                    corrected[leaf] = self._corrected(gradient, space, leaf.name, whole=leaf.part == "weight")
        return corrected, keep

    def note(self) -> str:
        """Return the share of the cases in which a part was taken out."""
        return f"transfer: {self._removed / max(1, self._seen):.0%} taken out"

    def _corrected(self, gradient: Tensor, space: RemovalSpace, name: str, *, whole: bool) -> Tensor:
        basis = space.directions[name].to(gradient)
        flat = gradient.flatten(1)
        part = flat @ basis @ basis.T
        self._seen += 1
        helps = False
        if whole and part.norm() > self._share * flat.norm():
            earlier = space.gradient[name].to(flat)
            helps = bool((earlier * flat).sum() > self._alignment * earlier.norm() * flat.norm())
        if helps:
            return gradient
        self._removed += 1
        return (flat - part).view_as(gradient)


def main_inputs(moment: Float[Tensor, "in in"], energy: float) -> Float[Tensor, "in k"]:
    """Return the fewest directions of a second moment that hold a share of its energy; at least one."""
    energies, directions = torch.linalg.eigh(moment)
    descending = energies.flip(0).clamp(min=0).cumsum(0) / energies.clamp(min=0).sum().clamp(min=1e-300)
    count = int((descending < energy - 1e-12).sum()) + 1
    return directions.flip(1)[:, :count].float()
