"""Distances between two sets of images: one number with the counts of both sets."""

from dataclasses import dataclass

from ..stats.scores import Score


@dataclass(frozen=True, kw_only=True)
class SetDistance(Score):
    """A distance between two sets of images, which has no values per image.

    Attributes:
        reference_n: Number of images of the reference set; `n` counts the judged set.
    """

    reference_n: int

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "reference_n": self.reference_n}

    def __str__(self) -> str:
        # Four significant digits: a KID is of the order of a thousandth.
        interval = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        return f"{self.value:.4g}{interval} (n = {self.n:,} against {self.reference_n:,})"
