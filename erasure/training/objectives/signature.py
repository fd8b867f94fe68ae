"""KIF's activation signatures and capsules (arXiv:2601.10566), distilled into the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.layer_readings import changed_outputs
from ...errors import InputError
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
        kept = nearest_concepts(task, self.neighbours)
        if not kept:
            raise InputError(
                "signature: expected concepts that preserve something, got none. Name in preserve what the target is"
                " told apart from."
            )
        others = NoisedImages(task.context, kept, images=self.images, image_steps=self.image_steps, early=self.early)
        gates = self.gates(task, images, others)

        @torch.no_grad()
        def taught(batch: NoisedDraw) -> Tensor:
            with task.reference(), changed_outputs(task.backbone, gates):
                return scheduled_prediction(task.backbone, batch.latents, batch.timesteps, batch.named)

        def measure(student: Student, batch: NoisedDraw, step: int, generator: torch.Generator) -> Float[Tensor, " n"]:
            parts = [batch, others.draw(len(batch), generator)]
            errors = [squared_errors(read_by(student, task.backbone, each, each.named), taught(each)) for each in parts]
            return torch.stack(errors).mean(0)

        return measure

    def gates(
        self, task: TrainingTask, images: NoisedImages, others: NoisedImages
    ) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return the gate of each chosen layer."""
        features = LayerFeatures.of(task, self.max_pixels)
        shown, not_shown = features.in_regions(images), features.in_regions(others)
        capsules = {layer: Capsule.of(shown[layer], not_shown[layer], self) for layer in features.layers}
        count = max(1, round(self.share * len(capsules)))
        chosen = sorted(capsules, key=lambda layer: -capsules[layer].effect)[:count]
        return {layer: capsules[layer] for layer in chosen}


@dataclass(frozen=True, kw_only=True, eq=False)
class Capsule:
    """A gate on the direction by which a layer's output shows the target.

    Attributes:
        direction: Unit vector v.
        mean: Mean of <h, v> over target and others.
        deviation: Its standard deviation.
        threshold: Standardised projection at which the gate is half open (z0).
        effect: Cohen's d of the projections.
        alpha: Share of the direction that is added.
        sharpness: Slope of the gate.
    """

    direction: Float[Tensor, " channels"]
    mean: float
    deviation: float
    threshold: float
    effect: float
    alpha: float
    sharpness: float

    @classmethod
    def of(
        cls, target: Float[Tensor, "n channels"], others: Float[Tensor, "m channels"], settings: Signature
    ) -> "Capsule":
        """Return the capsule that parts the outputs for the target from those for others."""
        both = torch.cat([target, others])
        spread = both.std(0).clamp(min=1e-6)
        direction = (target.mean(0) - others.mean(0)) / spread
        direction = direction / direction.norm().clamp(min=1e-12)
        shown, not_shown = target @ direction, others @ direction
        mean, deviation = float((both @ direction).mean()), max(float((both @ direction).std()), 1e-12)
        pooled = max(float(((shown.var() + not_shown.var()) / 2).sqrt()), 1e-12)
        middle = float(shown.mean() + not_shown.mean()) / 2
        return cls(
            direction=direction,
            mean=mean,
            deviation=deviation,
            threshold=(middle - mean) / deviation,
            effect=float(shown.mean() - not_shown.mean()) / pooled,
            alpha=settings.alpha,
            sharpness=settings.sharpness,
        )

    def __call__(self, output: Tensor) -> Tensor:
        """Return a layer's output after the gate."""
        direction = self.direction.to(output)
        projection = (output @ direction)[..., None]
        z = (projection - self.mean) / self.deviation
        return output + self.alpha * torch.sigmoid(self.sharpness * (z - self.threshold)) * projection * direction
