"""A metric of brightness."""

from dataclasses import dataclass, field
from typing import ClassVar

from erasure.eval.images.conversion import Images, as_pil
from erasure.eval.metrics import Metric
from erasure.eval.metrics.base import Feed
from erasure.eval.stats.scores import Score, Setup
from erasure.registry import Exactness


@dataclass(kw_only=True)
class AddedMetric(Metric):
    """Mean brightness of images, in [0, 1].

    Attributes:
        scale: Factor of the brightness.
    """

    name: ClassVar[str] = "added-metric"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    feed: ClassVar[Feed] = "images"

    scale: float = 1.0
    _values: list[float] = field(default_factory=list, init=False, repr=False)

    def update(self, images: Images) -> "AddedMetric":
        """Add images."""
        for image in as_pil(images):
            pixels = image.convert("L").tobytes()
            self._values.append(self.scale * sum(pixels) / len(pixels) / 255)
        return self

    def compute(self) -> Score:
        """Return the mean brightness."""
        setup = Setup(metric=self.name, backbone="pixels")
        return Score.mean(self._values, unit="brightness", higher_is_better=True, setup=setup)
