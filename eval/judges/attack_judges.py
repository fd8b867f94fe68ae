"""Who says that a concept is back: one that decides, and a second one that no attack and no decision looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL.Image import Image
from torch import Tensor

from erasure import tinyworld
from erasure.concept import Concept
from erasure.tinyworld import vocabulary
from erasure.tinyworld.judge import WorldClip


@runtime_checkable
class Witness(Protocol):
    """Says of pictures whether they show any of some concepts."""

    @property
    def title(self) -> str:
        """Who it is, in words."""
        ...

    def shows(self, images: Sequence[Image], concepts: Sequence[Concept], /) -> Bool[np.ndarray, " n"]:
        """Say of each picture whether it shows one of the concepts."""
        ...


@dataclass(frozen=True, kw_only=True)
class OracleWitness:
    """The tiny world's oracle."""

    device: str = "cpu"
    title: str = "the tiny world's oracle"

    def shows(self, images: Sequence[Image], concepts: Sequence[Concept], /) -> Bool[np.ndarray, " n"]:
        reading = tinyworld.load_oracle(self.device).read(images)
        return np.any([reading.sees(_known(concept)) for concept in concepts], axis=0)


@dataclass(frozen=True, kw_only=True)
class WorldClipWitness:
    """The tiny world's open_clip judge as a zero-shot classifier among all that a picture can be of.

    It was trained apart from the oracle, on captions instead of facts. Objects, styles and scenes are told apart each
    among themselves; "nothing" is one of the objects.
    """

    device: str = "cpu"
    title: str = "the tiny world's open_clip judge, zero-shot"

    def shows(self, images: Sequence[Image], concepts: Sequence[Concept], /) -> Bool[np.ndarray, " n"]:
        judge = tinyworld.load_clip(self.device)
        features = judge.image_features(list(images))
        return np.any([_best(judge, features, _known(concept)) for concept in concepts], axis=0)


def _best(judge: WorldClip, features: Tensor, name: str) -> Bool[np.ndarray, " n"]:
    """Return of which pictures a name is the best description among its kind."""
    if name in vocabulary.STYLES:
        names = vocabulary.STYLES
        texts = [f"{style} of a house" if style == "photo" else f"a house in {style} style" for style in names]
    elif name in vocabulary.SCENES:
        names = vocabulary.SCENES
        texts = [f"a picture {vocabulary.SCENE_PHRASES[scene][0]}" for scene in names]
    else:
        names = (*vocabulary.OBJECTS, *vocabulary.INDIVIDUALS, "nothing")
        texts = [f"a picture of {vocabulary.article(thing)}" for thing in names[:-1]] + ["a picture of nothing"]
    cosines = features @ judge.text_features(texts).T
    return cosines.argmax(dim=1).numpy() == list(names).index(name)


def _known(concept: Concept) -> str:
    return vocabulary.canonical(concept.target) or concept.target


@dataclass(frozen=True, kw_only=True)
class ClipWitness:
    """A CLIP model as a zero-shot classifier between the concepts, what they preserve, and just a picture.

    Attributes:
        source: The model, in the local cache or a folder.
        device: Where it runs.
    """

    source: str
    device: str = "cpu"

    @property
    def title(self) -> str:
        return f"{self.source}, zero-shot"

    def shows(self, images: Sequence[Image], concepts: Sequence[Concept], /) -> Bool[np.ndarray, " n"]:
        from .clip import ClipJudge, load_clip

        model, processor = load_clip(self.source, self.device)
        kept = [name for concept in concepts for name in concept.preserve]
        names = tuple(dict.fromkeys([*(concept.target for concept in concepts), *kept]))
        reading = ClipJudge(model=model, processor=processor, names=names).read(images)
        return np.any([reading.sees(concept.target) for concept in concepts], axis=0)
