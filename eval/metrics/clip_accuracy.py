"""CLIP accuracy: which of several texts an image fits best, in the two forms that are published under one name.

`clip_accuracy_top1` counts the images whose right text is the best (Kumari et al., ICCV 2023, arXiv:2303.13516);
`clip_accuracy_prob` averages the probability of the right text. They differ by tens of points on the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from erasure.errors import InputError
from erasure.judge import LOGIT_SCALE, Clip, zero_shot_logits
from erasure.registry import Exactness

from ..features.clip import OpenClip, TextTower, setup_of
from ..images.conversion import Images, as_pil
from ..stats.scores import Number, Score
from .base import Feed, Metric
from .labels import as_indices


def right_top1(logits: Float[Tensor, "n classes"], right: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Return True for each image whose right class is better than every other."""
    alone = (logits == logits.max(1, keepdim=True).values).sum(1) == 1
    return alone & (logits.argmax(1) == right)


def right_prob(logits: Float[Tensor, "n classes"], right: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the probability of the right class, one softmax over the classes."""
    return logits.softmax(1).gather(1, right[:, None])[:, 0]


@dataclass(kw_only=True)
class ClipAccuracy(Metric):
    """Streaming CLIP accuracy, both forms; keeps two numbers an image.

    Attributes:
        clip: The judge; by default open_clip's ViT-L/14 of OpenAI from the local cache.
        texts: Candidate texts: the target's, and its anchor's or those of other classes.
        logit_scale: Factor of the cosines, > 0; of the tiny world's CLIP `clip.logit_scale`.

    Raises:
        InputError: There are fewer than two texts, or two are the same.
    """

    name: ClassVar[str] = "clip_accuracy"
    source: ClassVar[str] = "arXiv:2303.13516"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "labels"

    clip: Clip = field(default_factory=OpenClip.load)
    texts: tuple[str, ...]
    logit_scale: Number = LOGIT_SCALE
    _top1: list[bool] = field(default_factory=list, init=False, repr=False)
    _prob: list[float] = field(default_factory=list, init=False, repr=False)
    _candidates: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.texts) < 2 or len(set(self.texts)) < len(self.texts):
            raise InputError(f"clip_accuracy.texts: expected two or more different texts, got {self.texts!r}.")
        self._candidates = TextTower(self.clip).features(self.texts)

    def update(self, images: Images, right: Sequence[int] | Int[np.ndarray, " n"]) -> "ClipAccuracy":
        """Add images, each with the index of its right text.

        Raises:
            InputError: There are not as many indices as images, or one stands for no text.
        """
        images = as_pil(images)
        indices = as_indices(right, len(images), len(self.texts), "clip_accuracy")
        if images:
            logits = zero_shot_logits(self.clip.image_features(images), self._candidates, self.logit_scale)
            self._top1 += right_top1(logits, indices).tolist()
            self._prob += right_prob(logits, indices).tolist()
        return self

    def scores(self) -> dict[str, Score]:
        return {f"{self.name}_top1": self.compute_top1(), f"{self.name}_prob": self.compute_prob()}

    def compute_top1(self) -> Score:
        """Return `clip_accuracy_top1`, the share of images whose right text is the best."""
        setup = setup_of(self.clip, "clip_accuracy_top1")
        return Score.share(np.array(self._top1, dtype=bool), unit="share", higher_is_better=True, setup=setup)

    def compute_prob(self) -> Score:
        """Return `clip_accuracy_prob`, the mean probability of the right text."""
        setup = setup_of(self.clip, "clip_accuracy_prob")
        return Score.mean(self._prob, unit="probability", higher_is_better=True, setup=setup)
