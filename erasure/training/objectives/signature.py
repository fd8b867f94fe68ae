"""KIF's activation signatures and capsules (arXiv:2601.10566), distilled into the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.layer_readings import changed_outputs
from ...errors import InputError
from ...guidance.capsule import Capsule
from ...registry import Exactness
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..draws.features import LayerFeatures
from ..draws.neighbours import nearest_concepts
from ..draws.noised_images import NoisedDraw, NoisedImages, read_by, squared_errors
from ..student import Student
from .noised import Measure, NoisedObjective


@dataclass(frozen=True, kw_only=True)
class Signature(NoisedObjective):
    """Distillation of the reference with the target's own direction of activations gated away, for all prompts.

        v_l = (mu_c - mu_n) / sd, unit length;   h <- h + alpha sigmoid(k (z - z0)) <h, v> v
        L = |eps(x_t, y) - eps_gated(x_t, y)|^2   for images of the target and of preserved names, half each

    mu_c and mu_n are the means of the output (channels) of cross-attention layer l over the pixels R of the target and
    of preserved names in the same sentences, sd the standard deviation of each channel. z is <h, v>, standardised over
    both; z0 lies halfway between their means. The layers are those that part the two best, by Cohen's d.

    Differs from the paper: the mix of preference, unlikelihood and elastic weights, which is for text, is left out.

    Attributes:
        alpha: Share of the direction that the gate adds, < 0; -1 takes it away.
        sharpness: Slope of the gate, > 0 (k).
        neighbours: Number of preserved names that stand for all, the nearest as text, > 0.
        share: Share of the layers that are gated, in (0, 1].
        max_pixels: Largest layer, in pixels; None takes all.
    """

    name: ClassVar[str] = "signature"
    source: ClassVar[str] = "arXiv:2601.10566"
    exactness: ClassVar[Exactness] = "reconstructed"
    weighs_images: ClassVar[bool] = False

    alpha: Annotated[float, Field(lt=0)] = -1.0
    sharpness: Annotated[float, Field(gt=0)] = 4.0
    neighbours: Annotated[int, Field(ge=1)] = 8
    share: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    max_pixels: Annotated[int, Field(ge=1)] | None = None

    def measure(self, task: TrainingTask, images: NoisedImages) -> Measure:
        others = self._others(task)
        capsules = self._told_apart(task, images, others)
        gates = {
            layer: partial(each.gated, alpha=self.alpha, sharpness=self.sharpness) for layer, each in capsules.items()
        }

        @torch.no_grad()
        def taught(batch: NoisedDraw) -> Tensor:
            with task.reference(), changed_outputs(task.backbone, gates):
                return scheduled_prediction(task.backbone, batch.latents, batch.timesteps, batch.named)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            parts = [batch, others.draw(len(batch), generator)]
            errors = [squared_errors(read_by(student, task.backbone, each, each.named), taught(each)) for each in parts]
            return torch.stack(errors).mean(0)

        return measure

    def capsules(self, task: TrainingTask) -> Mapping[str, Capsule]:
        """Return the capsule of each chosen layer, from images of the targets and of preserved names."""
        images = NoisedImages(
            task.context, task.concepts, images=self.images, image_steps=self.image_steps, early=self.early
        )
        return self._told_apart(task, images, self._others(task))

    def _others(self, task: TrainingTask) -> NoisedImages:
        kept = nearest_concepts(task, self.neighbours)
        if not kept:
            raise InputError(
                "signature: expected concepts that preserve something, got none. Name in preserve what the target is"
                " told apart from."
            )
        return NoisedImages(task.context, kept, images=self.images, image_steps=self.image_steps, early=self.early)

    def _told_apart(self, task: TrainingTask, images: NoisedImages, others: NoisedImages) -> Mapping[str, Capsule]:
        features = LayerFeatures.of(task, self.max_pixels)
        shown, not_shown = features.in_regions(images), features.in_regions(others)
        capsules = {layer: Capsule.of(shown[layer], not_shown[layer]) for layer in features.layers}
        count = max(1, round(self.share * len(capsules)))
        chosen = sorted(capsules, key=lambda layer: -capsules[layer].effect)[:count]
        return {layer: capsules[layer] for layer in chosen}
