"""The end of a training when a judge sees the targets no more."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..concept import Concept
from ..errors import InputError
from ..judge import Judge
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
        kept: Share of images of preserved names that must show them as well, in [0, 1]; 0 does not look. After a
            `reset` nothing is drawn at first, and what stays comes back last.
        images: Images of all targets together, > 0.
        every: Updates between two looks, > 0.
        image_steps: Sampling steps of an image, > 0.
    """

    name: ClassVar[str] = "until"

    efficacy: Annotated[float, Field(ge=0, le=1)] = 0.95
    kept: Annotated[float, Field(ge=0, le=1)] = 0.0
    images: Annotated[int, Field(ge=1)] = 32
    every: Annotated[int, Field(ge=1)] = 25
    image_steps: Annotated[int, Field(ge=1)] = 25

    def stop(self, task: TrainingTask) -> Callable[[Student, int], bool] | None:
        """Return the function that ends the training; see `stop_when_gone`.

        Raises:
            InputError: What is preserved is to be looked at, and the judge knows none of it.
        """
        probes = _probes(task.concepts, self.images)
        sampling = SamplingSettings.of(task.backbone.pipe, steps=self.image_steps, batch_size=8)
        context, judge = task.context, task.context.judge
        is_gone = stop_when_gone(context, probes, sampling, every=self.every, share=1 - self.efficacy)
        if is_gone is None or judge is None or not self.kept:
            return is_gone
        names = dict.fromkeys(name for concept in task.concepts for name in concept.preserve if judge.knows(name))
        if not names:
            raise InputError(
                f"shape.until.kept: expected preserved names that the judge knows, got none for {self.kept!r}. Name"
                " some in preserve, or leave it out."
            )
        kept = _probes([Concept(target=name) for name in names], self.images)

        def stop(student: Student, done: int) -> bool:
            return is_gone(student, done) and share_seen(student, context, judge, kept, sampling) >= self.kept

        return stop


Probes = Sequence[tuple[Concept, str, int]]
"""Concept, prompt and seed of each image that is looked at."""


def _probes(concepts: Sequence[Concept], images: int) -> Probes:
    """Return the same number of images of each concept, at least one."""
    each = max(1, images // len(concepts))
    return [
        (concept, fill(templates(concept.kind)[i % len(templates(concept.kind))], concept.target), _SEED + i)
        for concept in concepts
        for i in range(each)
    ]


def share_seen(
    student: Student, context: FitContext, judge: Judge, probes: Probes, sampling: SamplingSettings
) -> float:
    """Return the share of the student's images in which the judge sees their concept."""
    prompts, seeds = [prompt for _, prompt, _ in probes], [seed for _, _, seed in probes]
    images = student(sample, context.backbone.pipe, prompts, seeds, sampling)
    shown = [judge.shows([image], concept.target)[0] for image, (concept, _, _) in zip(images, probes, strict=True)]
    return sum(map(bool, shown)) / len(shown)


def stop_when_gone(
    context: FitContext,
    probes: Probes,
    sampling: SamplingSettings,
    *,
    every: int,
    share: float,
) -> Callable[[Student, int], bool] | None:
    """Return a function of the student and the number of updates: True if the training may end; None without a judge.

    Args:
        context: Surroundings of the fit.
        probes: Images that are looked at.
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
        seen = share_seen(student, context, judge, probes, sampling)
        logger.info("after %d updates %.0f %% of the images show the target", done, 100 * seen)
        return seen <= share

    return stop
