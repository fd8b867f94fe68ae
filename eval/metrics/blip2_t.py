"""BLIP2-T in the three forms that are published under the name.

ClassDiffusion's table (arXiv:2405.17532) names BLIP2-T; its code runs BLIP 1 with the contrastive branch. The forms are

- `blip_itc`: BLIP 1, cosine of the projected class tokens of image and text, as the code computes it;
- `blip2_itc`: BLIP-2, the largest cosine of the 32 query tokens with the text, as the name suggests;
- `blip2_itm`: BLIP-2, probability of "match" from the matching head, which is not comparable with the other two.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import isclose
from typing import ClassVar

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from erasure.errors import InputError
from erasure.registry import Exactness

from ..features.image_features import processed
from ..features.weights import from_hub, model_from_hub
from ..images.conversion import Images, as_pil
from ..stats.scores import Setup
from .base import Feed, Metric
from .texts import TextScore

TOKENS = 32
"""Length of a text in tokens for BLIP-2, special ones included; LAVIS truncates there."""


def match_probability(logits: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """Return the probability of the second class, "match": one softmax over the two logits of each pair."""
    return logits.double().softmax(1)[:, 1]


def paired(similarities: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """Return each image's similarity with its own text from the table of all images and texts."""
    return similarities.double().diagonal()


@dataclass(kw_only=True)
class RetrievalScore(Metric, ABC):
    """Base of the three forms: a model of image-text retrieval with its own processor; one number an image.

    Attributes:
        model: Retrieval model of transformers.
        processor: Processor of the model; its image size and normalisation are used.
        weights: Repository or folder of the weights, for the protocol.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    default: ClassVar[str]
    model_class: ClassVar[str]

    model: PreTrainedModel
    processor: ProcessorMixin
    weights: str
    _values: list[float] = field(default_factory=list, init=False, repr=False)
    _truncated: list[str] = field(default_factory=list, init=False, repr=False)
    _lengths: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.model.eval()

    @classmethod
    def load(cls, weights: str | None = None, *, device: str = "cpu", download: bool = False) -> "RetrievalScore":
        """Load a checkpoint of the Hub or a folder.

        Args:
            weights: Repository or folder; default: the metric's own.
            device: Device of the model.
            download: Whether missing weights may be downloaded.

        Raises:
            MissingWeightsError: The weights are not in the local cache and may not or cannot be downloaded.
            InputError: The checkpoint lacks weights of the model.
        """
        import transformers

        weights = weights or cls.default
        model_class = getattr(transformers, cls.model_class)
        model = model_from_hub(model_class, weights, cls.name, download=download, device=device)
        processor = from_hub(transformers.AutoProcessor.from_pretrained, weights, cls.name, download=download)
        return cls(model=model, processor=processor, weights=weights)

    def update(self, images: Images, prompts: Sequence[str]) -> "RetrievalScore":
        """Add images with their prompts.

        Raises:
            InputError: The numbers of prompts and images differ, or the model scores two different texts alike.
        """
        images, texts = as_pil(images), list(prompts)
        if len(images) != len(texts):
            raise InputError(f"{self.name}: expected a prompt an image, got {len(texts)} for {len(images)} images.")
        if not images:
            return self
        if not self._values:
            self._check(images[0])
        self._values += self._scores(images, texts).tolist()
        for text in texts:
            if text not in self._lengths:
                self._lengths[text] = len(self.processor.tokenizer(text).input_ids)
        self._truncated += [text for text in texts if self._lengths[text] > self._longest]
        return self

    def compute(self) -> TextScore:
        """Return the mean over all images so far.

        Raises:
            InputError: There are no images.
        """
        return TextScore.of(self._values, unit=self.unit, setup=self.setup, truncated=self._truncated)

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return Setup(
            metric=self.name,
            library=f"transformers {version('transformers')}",
            backbone=self.weights,
            resize=processed(self.processor.image_processor),
        )

    @property
    def _longest(self) -> int:
        """Length in tokens at which a text is cut."""
        return TOKENS

    def _check(self, image: Image) -> None:
        one, other = self._scores([image] * 2, ["a photo of a dog", "an empty street at night"]).tolist()
        if isclose(one, other, rel_tol=1e-5):  # float32 rounding is about a tenth of that
            raise InputError(
                f"{self.name}: expected different scores for two different texts, got {one!r} for both."
                f" {self.weights} ignores the text; name another checkpoint."
            )

    @torch.no_grad()
    def _scores(self, images: list[Image], texts: list[str]) -> Tensor:
        # Image and text separately: BLIP-2's processor subtracts its 32 query tokens from the length of a text.
        device = self.model.device
        text = self.processor.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(device)
        pixels = self.processor.image_processor(images, return_tensors="pt").pixel_values.to(device)
        return self._forward(pixels, text.input_ids, text.attention_mask).cpu()

    @abstractmethod
    def _forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the score of each image and text (n,)."""


@dataclass(kw_only=True)
class BlipItc(RetrievalScore):
    """`blip_itc`: BLIP 1's contrastive branch; no temperature, no softmax.

    As in ClassDiffusion's code no text is cut before the model's last position, 512 tokens of its checkpoint.
    """

    name: ClassVar[str] = "blip_itc"
    source: ClassVar[str] = "arXiv:2405.17532"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "prompts"
    unit: ClassVar[str] = "cosine"
    default: ClassVar[str] = "Salesforce/blip-itm-large-coco"
    model_class: ClassVar[str] = "BlipForImageTextRetrieval"

    @property
    def _longest(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def _forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        out = self.model(pixel_values=pixels, input_ids=ids, attention_mask=mask, use_itm_head=False)
        return paired(out.itm_score)


@dataclass(kw_only=True)
class Blip2Itc(RetrievalScore):
    """`blip2_itc`: BLIP-2's contrastive branch, the best of the query tokens; no temperature, no softmax."""

    name: ClassVar[str] = "blip2_itc"
    source: ClassVar[str] = "arXiv:2301.12597"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "prompts"
    unit: ClassVar[str] = "cosine"
    default: ClassVar[str] = "Salesforce/blip2-itm-vit-g"
    model_class: ClassVar[str] = "Blip2ForImageTextRetrieval"

    def _forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return paired(_blip2(self.model, pixels, ids, mask, matching=False))


@dataclass(kw_only=True)
class Blip2Itm(RetrievalScore):
    """`blip2_itm`: BLIP-2's matching head, mean over the query tokens, one softmax."""

    name: ClassVar[str] = "blip2_itm"
    source: ClassVar[str] = "arXiv:2301.12597"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "prompts"
    unit: ClassVar[str] = "probability"
    default: ClassVar[str] = "Salesforce/blip2-itm-vit-g"
    model_class: ClassVar[str] = "Blip2ForImageTextRetrieval"

    def _forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return match_probability(_blip2(self.model, pixels, ids, mask, matching=True))


def _blip2(model: PreTrainedModel, pixels: Tensor, ids: Tensor, mask: Tensor, *, matching: bool) -> Tensor:
    token = model.config.image_token_index
    if token is not None:
        # Such a model drops as many tokens as it has queries; they are put in front, or it would drop the text.
        front = torch.full((len(ids), model.config.num_query_tokens), token, dtype=ids.dtype, device=ids.device)
        ids, mask = torch.cat([front, ids], 1), torch.cat([torch.ones_like(front), mask], 1)
    return model(
        pixel_values=pixels, input_ids=ids, attention_mask=mask, use_image_text_matching_head=matching
    ).logits_per_image
