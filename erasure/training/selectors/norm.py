"""Layers with the largest erasing gradient, the cheap baseline of site selection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ...registry import Exactness
from ..context import TrainingTask
from ..draws.sensitivity import erasing_gradients, prediction_fisher
from .base import Selection, Selector


@dataclass(frozen=True, kw_only=True)
class GradientNorm(Selector):
    """The weights whose erasing gradient is largest against what kept predictions depend on.

        score = |g| / sqrt(sum F)

    g is the mean gradient of |eps(x_t, c) - eps_0(x_t, a)|^2 at noised images of the target, F the diagonal Fisher of
    the reference's predictions for class phrases, both of one weight or bias. Other selectors must beat this one.

    Attributes:
        share: Share of the weights that is trained, in (0, 1]; at least one is.
        batches: Batches of four noised images for the gradient, > 0.
        samples: Single latents for F, > 0.
        images: Images of each target, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "norm"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    quick: ClassVar[Mapping[str, Any]] = {"batches": 1, "samples": 2, "images": 2, "image_steps": 2}

    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    batches: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=1)] = 32
    images: Annotated[int, Field(ge=1)] = 16
    image_steps: Annotated[int, Field(ge=1)] = 25

    def selected(self, task: TrainingTask) -> Selection:
        gradients = erasing_gradients(
            task, task.concepts, batches=self.batches, images=self.images, image_steps=self.image_steps
        )
        fisher = prediction_fisher(task, self.samples)
        scores = {
            name: float(gradient.norm() / fisher[name].sum().sqrt().clamp(min=1e-12))
            for name, gradient in gradients.items()
        }
        count = max(1, round(self.share * len(scores)))
        return Selection(names=frozenset(sorted(scores, key=lambda name: -scores[name])[:count]))
