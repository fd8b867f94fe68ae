"""The end of a training when a judge sees the targets no more."""

import logging
from collections.abc import Callable, Sequence

from ..concept import Concept
from ..sampling import SamplingSettings, sample
from .context import FitContext
from .student import Student

logger = logging.getLogger(__name__)


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
