"""What scores against a text share: prompts without the target, prompts too long to be read, features kept by text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erasure.errors import InputError

from ..stats.scores import Number, Score, Setup


@dataclass(frozen=True, kw_only=True)
class TextScore(Score):
    """A mean over images of their match with a text.

    Attributes:
        truncated: The distinct texts of which the model did not read the end. Two that differ only there score alike.
        left_out: Images that were not scored because nothing of their text was left.
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
        """Average one value an image; a higher one is better.

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
