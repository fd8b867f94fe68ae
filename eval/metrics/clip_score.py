"""CLIP score: agreement of an image with its prompt (Hessel et al., EMNLP 2021, arXiv:2104.08718)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError
from erasure.judge import Clip
from erasure.prompts import without_phrases
from erasure.registry import Exactness

from ..features.clip import OpenClip, TextTower, setup_of
from ..images.conversion import Images, as_pil
from ..stats.scores import Setup
from .base import Feed, Metric
from .texts import TextScore

UNIT = "100 x cosine"


def clip_score(images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Return 100 x the cosine of each image's features with its text's, in [-100, 100].

    Differs from the paper: the factor is 100 instead of 2.5, and negative values are kept, as in most of the field.
    """
    return 100 * torch.nn.functional.cosine_similarity(images.double(), texts.double(), dim=1)


@dataclass(kw_only=True)
class ClipScore(Metric):
    """Streaming CLIP score; keeps one or two numbers an image and the features of each distinct text.

    Attributes:
        clip: CLIP; default: open_clip's ViT-L/14 of OpenAI from the local cache.
        target: Names of the erased concept. With them a second score is computed, against the prompt without them:
            for a good erasure the first score falls and the second does not.
    """

    name: ClassVar[str] = "clip_score"
    source: ClassVar[str] = "arXiv:2104.08718"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "prompts"

    clip: Clip = field(default_factory=OpenClip.load)
    target: tuple[str, ...] = ()
    _values: list[float] = field(default_factory=list, init=False, repr=False)
    _rest: list[float] = field(default_factory=list, init=False, repr=False)
    _tower: TextTower = field(init=False, repr=False)
    _rest_tower: TextTower = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tower, self._rest_tower = TextTower(self.clip), TextTower(self.clip)

    def update(self, images: Images, prompts: Sequence[str]) -> "ClipScore":
        """Add images with their prompts.

        Raises:
            InputError: The numbers of prompts and images differ.
        """
        images = as_pil(images)
        if len(images) != len(prompts):
            raise InputError(f"clip_score: expected a prompt an image, got {len(prompts)} for {len(images)} images.")
        if not images:
            return self
        seen = self.clip.image_features(images)
        self._values += clip_score(seen, self._tower.features(prompts)).tolist()
        if self.target:
            texts = [without_phrases(prompt, self.target) for prompt in prompts]
            said = [row for row, text in enumerate(texts) if text]
            if said:
                features = self._rest_tower.features([texts[row] for row in said])
                self._rest += clip_score(seen[said], features).tolist()
        return self

    def compute(self) -> TextScore:
        """Return the mean over all images so far against their prompts.

        Raises:
            InputError: There are no images.
        """
        return TextScore.of(self._values, unit=UNIT, setup=self.setup, truncated=self._tower.truncated)

    def compute_without_target(self) -> TextScore:
        """Return the mean against the prompts without the target; prompts without other words are left out.

        Raises:
            InputError: No target was named, or no image is left.
        """
        if not self.target:
            raise InputError("clip_score: expected the names of the target, got none. Give target=('cat',).")
        return TextScore.of(
            self._rest,
            unit=UNIT,
            setup=setup_of(self.clip, f"{self.name}_without_target"),
            truncated=self._rest_tower.truncated,
            left_out=len(self._values) - len(self._rest),
        )

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return setup_of(self.clip, self.name)
