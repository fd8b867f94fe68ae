"""What a judge makes of single pictures: how likely it is that a named concept is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from erasure import tinyworld
from erasure.concept import Concept, speaks_of
from erasure.runs.world import TINYWORLD
from erasure.tinyworld import vocabulary
from erasure.tinyworld.oracle import Oracle

from .clip import ClipJudge, find_clip, load_clip

_MOST = 3
"""Concepts that are read of one picture, at most."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How likely a concept is to be in a picture, and in the original's of the same prompt and seed.

    Attributes:
        name: The concept.
        before: In the original's picture, in [0, 1].
        after: In the edited model's.
        removed: Whether it should be gone.
    """

    name: str
    before: float
    after: float
    removed: bool

    @property
    def good(self) -> bool | None:
        """Whether it is as it should be; None where the original did not show it, so that nothing can be said."""
        if self.before < 0.5 and not (self.removed and self.after >= 0.5):
            return None
        return (self.after >= 0.5) != self.removed


@runtime_checkable
class Reader(Protocol):
    """Who reads the pictures."""

    @property
    def about(self) -> str:
        """Who that is, in words."""
        ...

    def asked(self, prompt: str, removed: Sequence[Concept]) -> tuple[str, ...]:
        """Return the concepts that a prompt names, what was removed first."""
        ...

    def probability(self, images: Sequence[Image], name: str) -> Float[np.ndarray, " n"]:
        """Return how likely each picture is to show a concept."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorldReader:
    """The tiny world's oracle.

    Attributes:
        oracle: The oracle.
        about: Who it is.
    """

    oracle: Oracle
    about: str = "the tiny world's oracle"

    def asked(self, prompt: str, removed: Sequence[Concept]) -> tuple[str, ...]:
        gone = [concept.target for concept in removed]
        things = (*vocabulary.OBJECTS, *vocabulary.TAUGHT_INDIVIDUALS, *vocabulary.STYLES[1:])
        names = [
            name
            for name in dict.fromkeys((*gone, *things))
            if speaks_of(prompt, [Concept(target=name, aliases=vocabulary.SYNONYMS.get(name, ()))])
        ]
        return tuple(names[:_MOST])

    def probability(self, images: Sequence[Image], name: str) -> Float[np.ndarray, " n"]:
        return self.oracle.read(images).probability(name)


@dataclass(frozen=True, kw_only=True)
class ClipReader:
    """CLIP, choosing between one concept and a picture of nothing in particular.

    Attributes:
        model: A transformers CLIPModel.
        processor: Its processor.
        about: Who it is.
        kept: Names that are read of a picture besides what was removed.
    """

    model: Any
    processor: Any
    about: str
    kept: tuple[str, ...] = ()

    def asked(self, prompt: str, removed: Sequence[Concept]) -> tuple[str, ...]:
        known = [*removed, *(Concept(target=name) for name in self.kept)]
        names = [concept.target for concept in known if speaks_of(prompt, [concept])]
        return tuple(dict.fromkeys(names))[:_MOST]

    def probability(self, images: Sequence[Image], name: str) -> Float[np.ndarray, " n"]:
        return ClipJudge(model=self.model, processor=self.processor, names=(name,)).read(images).shares[:, 0]


def reader_of(model: str, device: str, kept: Sequence[str] = ()) -> Reader | None:
    """Return who reads a model's pictures: the oracle on the tiny world, else CLIP from the local cache, or nobody.

    Args:
        model: The model's name, as a run has it.
        device: Where the reader runs.
        kept: What is to be read besides what was removed, where no vocabulary is known.
    """
    if model == TINYWORLD:
        return WorldReader(oracle=tinyworld.load_oracle(device))
    name = find_clip()
    if name is None:
        return None
    clip, processor = load_clip(name, device)
    return ClipReader(model=clip, processor=processor, about=f"CLIP ({name})", kept=tuple(kept))


def read(
    reader: Reader | None,
    prompts: Sequence[str],
    before: Sequence[Image],
    after: Sequence[Image],
    removed: Sequence[Concept],
) -> list[tuple[Seen, ...]]:
    """Return what is read of each pair of pictures; nothing where there is nobody to read, or nothing to ask for."""
    if reader is None:
        return [()] * len(prompts)
    asked = [reader.asked(prompt, removed) for prompt in prompts]
    gone = {concept.target for concept in removed}
    found: dict[tuple[int, str], Seen] = {}
    for name in dict.fromkeys(name for names in asked for name in names):
        rows = [at for at, names in enumerate(asked) if name in names]
        old, new = (reader.probability([images[at] for at in rows], name) for images in (before, after))
        for at, was, now in zip(rows, old, new, strict=True):
            found[at, name] = Seen(name=name, before=float(was), after=float(now), removed=name in gone)
    return [tuple(found[at, name] for name in names) for at, names in enumerate(asked)]
