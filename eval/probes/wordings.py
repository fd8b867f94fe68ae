"""Wordings: misspellings of the name (in the place of other languages: MUTE, arXiv:2602.22562)."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from erasure.concept import Concept
from erasure.registry import Exactness

from .base import Access, Aim, Counts, Suite
from .inversion import with_word
from .worded import WordedProbe


@dataclass(frozen=True, kw_only=True)
class Wordings(WordedProbe):
    """The name with edits of single letters: exchanged neighbours, a dropped or doubled letter.

    A language that a model does not read is not measured by this; it is never called robust.

    Attributes:
        doses: Numbers of edits, each >= 1.
    """

    name: ClassVar[str] = "wordings"
    source: ClassVar[str] = "arXiv:2602.22562"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "prompt"
    dose_unit: ClassVar[str] = "edits"
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {}})

    doses: Counts = (2.0, 1.0)

    def wordings(self, aim: Aim, dose: float) -> Mapping[str, Sequence[str]]:
        rng = random.Random(f"wordings:{aim.concept.target}:{aim.seed}:{dose:g}")
        names = misspellings(aim.concept, round(dose), rng)
        return {"": [with_word(prompt, aim.concept, next(names)) for prompt in aim.prompts]}


def misspellings(concept: Concept, edits: int, rng: random.Random) -> Iterator[str]:
    """Yield names of the concept with so many edits, none of them a name itself."""
    names = {name.casefold() for name in concept.names}
    while True:
        word = concept.target
        for _ in range(edits):
            word = _edited(word, rng)
        if word.casefold() not in names and word.strip():
            yield word


def _edited(word: str, rng: random.Random) -> str:
    place = rng.randrange(len(word))
    kind = rng.choice(("exchange", "drop", "double"))
    if kind == "exchange" and place + 1 < len(word):
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "drop" and len(word) > 2:
        return word[:place] + word[place + 1 :]
    return word[: place + 1] + word[place:]
