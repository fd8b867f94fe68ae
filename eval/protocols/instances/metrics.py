"""Judges of images of an instance.

On the tiny world its oracle says what is to be seen; elsewhere it is whatever of CLIP, DINO and BLIP has its weights in
the local cache.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from PIL import Image

from erasure.errors import ErasureError
from erasure.judge import Judge
from erasure.tinyworld import vocabulary
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.judge import WorldClip
from erasure.tinyworld.oracle import Oracle, Reading
from erasure.tinyworld.world import SIZE, compose, draw
from erasure.training.draws.augmentation import squared

from ...features.clip import TextTower
from ...features.weights import oracle_name
from ...metrics.caption_match import caption_setup, captions, text_match
from ...metrics.identity import identity, mean_direction
from ...stats.scores import Setup

Fits = Mapping[str, Float[np.ndarray, " n"]]


@runtime_checkable
class InstanceMetrics(Protocol):
    """Metrics of images of a personalised instance."""

    @property
    def title(self) -> str:
        """Name of the metrics."""
        ...

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number, by name."""
        ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """Metrics that are not computed, with the reason."""
        ...

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        """Return the similarity of each image with the instance's images, by metric."""
        ...

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        """Return the agreement of each image with its text, by metric."""
        ...

    @property
    def judge(self) -> Judge | None:
        """Judge of the images; None if there is none."""
        ...


@dataclass(kw_only=True)
class WorldInstanceMetrics:
    """The tiny world's oracle, and its text judge for captions written from what the oracle sees.

    Attributes:
        oracle: Looks.
        clip: The world's CLIP, whose text features compare captions.
        class_word: Class of the instance, by the world's name.
        images: Images of the instance, of any size.
    """

    title = "the tiny world's oracle"

    oracle: Oracle
    clip: WorldClip
    class_word: str
    images: Sequence[Image.Image]
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What all of its class share says nothing of which one it is.
        rng = random.Random(f"class of an instance: {self.class_word}")
        scenes = vocabulary.SCENES
        others = [draw(compose([self.class_word], rng, scene=scenes[i % len(scenes)])) for i in range(48)]
        self._class = self.oracle.read(others).features.mean(0)
        members = [squared(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in self.images]
        self._reference = mean_direction(self.oracle.read(members).features - self._class)
        self._tower = TextTower(self.clip)

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number."""
        reference = f"{len(self.images)} images it was learned from, less drawings of a {self.class_word}"
        return {
            "identity": Setup(metric="identity", backbone=oracle_name(self.oracle), reference=reference),
            "caption_match": caption_setup(self.oracle, self.clip),
            "seen": Setup(metric="seen", backbone=oracle_name(self.oracle)),
        }

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        return {"identity": identity(self.oracle.read(list(images)).features - self._class, self._reference)}

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        written = self._tower.features(captions(self._classes(self.oracle.read(list(images)))))
        return {"caption_match": text_match(written, self._tower.features(texts)).numpy()}

    def _classes(self, reading: Reading) -> Reading:
        """Return a reading in which individuals of the class are just that: what is asked for has no other name."""
        members = [THINGS.index(who) for who, kind in vocabulary.INDIVIDUALS.items() if kind == self.class_word]
        things = reading.things.copy()
        i = THINGS.index(self.class_word)
        things[:, i] = things[:, [i, *members]].max(1)
        things[:, members] = 0.0
        return replace(reading, things=things)

    @property
    def judge(self) -> Judge:
        return self.oracle


@dataclass(kw_only=True)
class PublicInstanceMetrics:
    """CLIP, DINO and BLIP, as far as their weights are in the local cache; nothing is downloaded.

    Attributes:
        images: Images of the instance.
        device: Device of the models.
    """

    title = "CLIP, DINO and BLIP"

    images: Sequence[Image.Image]
    device: str = "cpu"
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from ...features.clip import OpenClip
        from ...features.image_features import extractor
        from ...metrics.blip2_t import Blip2Itc, Blip2Itm, BlipItc
        from ...metrics.clip_i import ClipI
        from ...metrics.clip_score import ClipScore
        from ...metrics.dino_i import DinoI

        self._like: dict[str, Any] = {}
        self._fit: dict[str, Any] = {}
        self._loaded(
            "clip_i", self._like, lambda: ClipI(extractor=extractor("clip:ViT-B-32:openai", device=self.device))
        )
        self._loaded("dino_i", self._like, lambda: DinoI(extractor=extractor("dino", device=self.device)))
        self._loaded("clip_score", self._fit, lambda: ClipScore(clip=OpenClip.load(device=self.device)))
        for kind in (BlipItc, Blip2Itc, Blip2Itm):
            self._loaded(kind.name, self._fit, lambda kind=kind: kind.load(device=self.device))

    def _loaded(self, name: str, into: dict[str, Any], load: Any) -> None:
        try:
            into[name] = load()
        except ErasureError as error:
            self.skipped[name] = str(error)

    @property
    def setups(self) -> Mapping[str, Setup]:
        """The protocol of each number."""
        return {name: metric.setup for name, metric in {**self._like, **self._fit}.items()}

    def likeness(self, images: Sequence[Image.Image]) -> Fits:
        values = {}
        for name, metric in self._like.items():
            fresh = type(metric)(extractor=metric.extractor, reference="the images it was learned from")
            values[name] = _values(fresh.update_reference(list(self.images)).update(list(images)))
        return values

    def fits(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Fits:
        values = {}
        for name, metric in self._fit.items():
            fresh = (
                type(metric)(clip=metric.clip)
                if name == "clip_score"
                else type(metric)(model=metric.model, processor=metric.processor, source=metric.source)
            )
            values[name] = _values(fresh.update(list(images), list(texts)))
        return values

    @property
    def judge(self) -> None:
        return None


def _values(metric: Any) -> Float[np.ndarray, " n"]:
    return np.array(metric.compute().per_image)
