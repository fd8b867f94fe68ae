"""The end of a training when a judge sees the targets no more."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..concept import Concept
from ..prompts import fill, templates
from ..registry import Settings
from ..sampling import SamplingSettings, sample
from .context import FitContext, TrainingTask
from .student import Student

logger = logging.getLogger(__name__)


_SEED = 80_000_000


@dataclass(frozen=True, kw_only=True)
class Until(Settings):
    """The end of a training once the judge sees the target in few images; without a judge it has its whole length.

    Attributes:
        efficacy: Share of images without their target at which the training ends, in [0, 1].
        images: Images of all targets together, > 0.
        every: Updates between two looks, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "until"

    efficacy: Annotated[float, Field(ge=0, le=1)] = 0.95
    images: Annotated[int, Field(ge=1)] = 32
    every: Annotated[int, Field(ge=1)] = 25
    image_steps: Annotated[int, Field(ge=1)] = 25

    def stop(self, task: TrainingTask) -> Callable[[Student, int], bool] | None:
        """Return the function that ends the training; see `stop_when_gone`."""
        concepts = task.concepts
        each = max(1, self.images // len(concepts))
        probes = [
            (concept, fill(templates(concept.kind)[i % len(templates(concept.kind))], concept.target), _SEED + i)
            for concept in concepts
            for i in range(each)
        ]
        sampling = SamplingSettings.of(task.backbone.pipe, steps=self.image_steps, batch_size=8)
        return stop_when_gone(task.context, probes, sampling, every=self.every, share=1 - self.efficacy)


def stop_when_gone(
    context: FitContext,
    probes: Sequence[tuple[Concept, str, int]],
    sampling: SamplingSettings,
    *,
    every: int,
    share: float,
) -> Callable[[Student, int], bool] | None:
    """Return a function of the student and the number of updates: True if the training may end; None without a judge.

    Args:
        context: Surroundings of the fit.
        probes: Concept, prompt and seed of each image that is looked at.
        sampling: Sampling settings of the images.
        every: Updates between two looks, >= 0; 0 never looks.
        share: Largest share of images that may show their concept, in [0, 1].
    """
    judge = context.judge
    if judge is None or not every:
        return None

    def stop(student: Student, done: int) -> bool:
        if done % every:
            return False
        images = student(
            sample,
            context.backbone.pipe,
            [prompt for _, prompt, _ in probes],
            [seed for _, _, seed in probes],
            sampling,
        )
        shown = [judge.shows([image], concept.target)[0] for image, (concept, _, _) in zip(images, probes, strict=True)]
        seen = sum(map(bool, shown)) / len(shown)
        logger.info("after %d updates %.0f %% of the images show the target", done, 100 * seen)
        return seen <= share

    return stop
