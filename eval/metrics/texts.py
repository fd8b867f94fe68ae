"""Scores against a text: their mean, with the texts that the model truncated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erasure.errors import InputError

from ..stats.scores import Number, Score, Setup


@dataclass(frozen=True, kw_only=True)
class TextScore(Score):
    """Mean over images of their agreement with a text.

    Attributes:
        truncated: Distinct texts that the model truncated; texts that differ after the cut score alike.
        left_out: Number of images without a score, because no word of their text was left.
    """

    truncated: tuple[str, ...] = ()
    left_out: int = 0

    @classmethod
    def of(
        cls,
        values: Sequence[Number] | Float[np.ndarray, " n"],
        *,
        unit: str,
        setup: Setup,
        truncated: Sequence[str],
        left_out: int = 0,
    ) -> "TextScore":
        """Return the mean of one value an image; higher is better.

        Raises:
            InputError: There are no values.
        """
        if not len(values):
            raise InputError(f"{setup.metric}: expected images to score, got none ({left_out} left out).")
        mean = Score.mean(values, unit=unit, higher_is_better=True, setup=setup)
        return cls(
            value=mean.value,
            n=mean.n,
            standard_error=mean.standard_error,
            unit=unit,
            higher_is_better=True,
            per_image=mean.per_image,
            setup=setup,
            truncated=tuple(dict.fromkeys(truncated)),
            left_out=left_out,
        )

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "truncated": len(self.truncated), "left_out": self.left_out}
