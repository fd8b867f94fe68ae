"""Interface of a metric: a streaming score of images."""

from typing import ClassVar, Literal

from erasure.registry import Plugin

from ..stats.scores import Score

Feed = Literal["images", "prompts", "labels", "reference", "before", "requests"]
"""Input of `update`.

- images: images alone.
- prompts: images and their prompts.
- labels: images and the indices of their right classes.
- reference: images, after the reference images were passed to `update_reference`.
- before: the images of the original model, then the images.
- requests: prompts, which the metric samples itself.
"""


class Metric(Plugin):
    """Score of images that takes them batch by batch: `update(...)` returns the metric, `compute()` the score.

    A metric is a dataclass, and not a frozen one. Computing changes nothing, and batches of any size give the same.

    Attributes:
        feed: Input of `update`.
    """

    feed: ClassVar[Feed]

    def scores(self) -> dict[str, Score]:
        """Return each score of the images so far by its name; one for most metrics."""
        compute = getattr(self, "compute")  # noqa: B009  # its type differs: a score with more than the value
        return {self.name: compute()}
