"""Caption match: a caption built from the oracle's reading, compared with the prompt in CLIP's text space.

The idea of the BLIP score (Li et al., ICML 2022: caption the image, compare texts) for the tiny world, which has no
captioner: the oracle's reading is turned into the sentence of the world's own grammar.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError
from erasure.registry import Exactness
from erasure.tinyworld.data import THINGS
from erasure.tinyworld.judge import WorldClip
from erasure.tinyworld.oracle import Oracle, Pictures, Reading
from erasure.tinyworld.vocabulary import INDIVIDUALS, SCENE_PHRASES, SCENES, STYLE_PHRASES, STYLES, article

from ..features.clip import TextTower, setup_of
from ..features.weights import oracle_name
from ..stats.scores import Score, Setup
from .base import Feed, Metric

UNIT = "100 x cosine of texts"


def captions(reading: Reading) -> list[str]:
    """Return a caption of each image: style, at most two things (the most probable above one half), scene.

    An individual stands for its class: the caption says "Biscuit", not "Biscuit and a dog".
    """
    sentences = []
    for row in range(len(reading.things)):
        seen = [THINGS[i] for i in reading.things[row].argsort()[::-1] if reading.things[row, i] > 0.5]
        classes = {INDIVIDUALS[name] for name in seen if name in INDIVIDUALS}
        things = [name for name in seen if name not in classes][:2]
        noun = " and ".join(article(name) for name in things) or "an empty scene"
        scene = SCENES[int(reading.scene[row].argmax())]
        place = "" if scene == "plain" and things else f" {SCENE_PHRASES[scene][0]}"
        style = STYLES[int(reading.style[row].argmax())]
        sentences.append(STYLE_PHRASES[style][1 if style == "photo" else 0].format(noun + place))
    return sentences


def text_match(one: Float[Tensor, "n dim"], other: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Return 100 x the cosine of each pair of text features, in [-100, 100]."""
    return 100 * torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1)


@dataclass(kw_only=True)
class CaptionMatch(Metric):
    """Streaming caption match; keeps one number an image and the features of each distinct text.

    Attributes:
        oracle: Oracle that reads the images.
        judge: Its text tower compares the sentences; it was trained apart from the model that is judged.
    """

    name: ClassVar[str] = "caption_match"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"
    feed: ClassVar[Feed] = "prompts"

    oracle: Oracle
    judge: WorldClip
    _values: list[float] = field(default_factory=list, init=False, repr=False)
    _tower: TextTower = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tower = TextTower(self.judge)

    def update(self, images: Pictures, prompts: Sequence[str]) -> "CaptionMatch":
        """Add images with their prompts.

        Raises:
            InputError: The numbers of prompts and images differ.
        """
        if len(images) != len(prompts) or not len(prompts):
            raise InputError(f"caption_match: expected a prompt an image, got {len(prompts)} for {len(images)} images.")
        written = captions(self.oracle.read(images))
        self._values.extend(text_match(self._tower.features(written), self._tower.features(prompts)).tolist())
        return self

    def compute(self) -> Score:
        """Return the mean over all images so far."""
        return Score.mean(self._values, unit=UNIT, higher_is_better=True, setup=self.setup)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return caption_setup(self.oracle, self.judge)


def caption_setup(oracle: Oracle, judge: WorldClip) -> Setup:
    """Return the protocol: the oracle reads the images, the judge's text space makes the number."""
    text = setup_of(judge, CaptionMatch.name)
    return replace(text, backbone=f"{text.backbone}, captions by {oracle_name(oracle)}")
