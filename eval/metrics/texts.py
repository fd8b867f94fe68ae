"""What scores against a text share: prompts without the target, prompts too long to be read, features kept by text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erasure.errors import InputError

from ..scores import Number, Score, Setup

_JOINING = r"(?:(?:and|with|of|by)\s+)?(?:(?:a|an|the)\s+)?"
_HANGING_AT_START = r"(?:and|with|of|by)"  # a prompt may well begin with an article
_HANGING_AT_END = r"(?:and|with|of|by|a|an|the)"


def without_phrases(prompt: str, phrases: Sequence[str]) -> str:
    """Return a prompt with every occurrence of some phrases taken out, whole words only, in any case.

    The article and the joining word before a phrase go with it, and so does what would be left hanging at either end:
    "a photo of a cat on a sofa" without "cat" is "a photo on a sofa". A plural is another word; name it if it must go.

    Args:
        prompt: Any text.
        phrases: What goes, the longest first.

    Raises:
        InputError: A phrase is empty.
    """
    text = prompt
    for phrase in sorted(phrases, key=len, reverse=True):
        if not phrase.strip():
            raise InputError(f"without_phrases: expected words, got {phrase!r}. Name what is to be taken out.")
        words = r"\s+".join(re.escape(word) for word in phrase.split())
        text = re.sub(rf"(?<!\w){_JOINING}{words}(?!\w)(?:'s)?", " ", text, flags=re.IGNORECASE)
    return text if text == prompt else _tidied(text)


def _tidied(text: str) -> str:
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    text = re.sub(r"(?:,\s*){2,}", ", ", text)
    while (shorter := _trimmed(text)) != text:
        text = shorter
    return text


def _trimmed(text: str) -> str:
    text = text.strip(" ,;:")
    return re.sub(rf"^{_HANGING_AT_START}\s+|\s+{_HANGING_AT_END}$|^{_HANGING_AT_END}$", "", text, flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TextScore(Score):
    """A mean over pictures of their match with a text.

    Attributes:
        truncated: The distinct texts of which the model did not read the end. Two that differ only there score alike.
        left_out: Pictures that were not scored because nothing of their text was left.
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
        """Average one value a picture; a higher one is better.

        Raises:
            InputError: There are no values.
        """
        if not len(values):
            raise InputError(f"{setup.metric}: expected pictures to score, got none ({left_out} left out).")
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
