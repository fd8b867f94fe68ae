"""The judge, the one interface through which an image is asked for a concept; and CLIP as a zero-shot judge."""
# pyright: reportUnknownMemberType=false
# Methods of transformers take untyped keyword arguments.

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from .arguments import checks_arguments
from .typed_torch import floats, integers

if TYPE_CHECKING:
    from transformers import BatchFeature, CLIPModel, CLIPProcessor

Result = TypeVar("Result")

CLIP_WEIGHTS = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")
LOGIT_SCALE = 100.0  # every published CLIP ends at the bound that training put on it
_BATCH = 16


@runtime_checkable
class Judge(Protocol):
    """Judge of images: which show a concept, how likely, and features for distances between images."""

    @property
    def name(self) -> str:
        """Name of the judge, for records and reports."""
        ...

    def knows(self, concept: str) -> bool:
        """Return True if images can be asked for this concept."""
        ...

    def probabilities(self, images: Sequence[Image], concept: str) -> Float[Tensor, " n"]:
        """Return the probability, in [0, 1], that each image shows the concept."""
        ...

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        """Return a decision for each image: True if it shows the concept."""
        ...

    def features(self, images: Sequence[Image]) -> Float[Tensor, "n dim"]:
        """Return one feature vector an image, for distances."""
        ...


@checks_arguments
def shows_any(judge: Judge, images: Sequence[Image], concepts: Sequence[str]) -> list[bool]:
    """Return for each image True if the judge sees at least one of the concepts."""
    decisions = [judge.shows(images, concept) for concept in concepts]
    return [any(decision[i] for decision in decisions) for i in range(len(images))]


@checks_arguments
def shows_each(judge: Judge, images: Sequence[Image], concepts: Sequence[str]) -> list[bool]:
    """Return for each image True if the judge sees the concept at the same position."""
    decisions = {concept: judge.shows(images, concept) for concept in dict.fromkeys(concepts)}
    return [decisions[concept][i] for i, concept in enumerate(concepts)]


@checks_arguments
def probability_each(judge: Judge, images: Sequence[Image], concepts: Sequence[str]) -> list[float]:
    """Return for each image the probability that it shows the concept at the same position."""
    by_concept = {concept: floats(judge.probabilities(images, concept)) for concept in dict.fromkeys(concepts)}
    return [by_concept[concept][i] for i, concept in enumerate(concepts)]


class ReadOnce(Generic[Result]):
    """Function of images that keeps its last result, so that one pass answers for several concepts.

    Args:
        read: Function of a sequence of images.
    """

    def __init__(self, read: Callable[[Sequence[Image]], Result]) -> None:
        self._read = read
        self._last: tuple[tuple[Image, ...], Result] | None = None

    def __call__(self, images: Sequence[Image]) -> Result:
        """Return the result for these images; computed anew unless they are the very images of the last call."""
        key, last = tuple(images), self._last
        if last is None or len(last[0]) != len(key) or any(a is not b for a, b in zip(last[0], key, strict=True)):
            last = self._last = (key, self._read(images))
        return last[1]


@runtime_checkable
class Clip(Protocol):
    """Model with one feature space for images and texts."""

    def image_features(self, images: list[Image], /) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each PIL RGB image."""
        ...

    def text_features(self, texts: list[str], /) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each text."""
        ...


def zero_shot_logits(
    images: Float[Tensor, "n dim"], texts: Float[Tensor, "k dim"], logit_scale: float = LOGIT_SCALE
) -> Float[Tensor, "n k"]:
    """Return the logits of each image over the texts: the scaled cosines of features of unit length, in float64."""
    return logit_scale * images.double() @ texts.double().T


@checks_arguments
class ZeroShotJudge:
    """CLIP as a judge: each image is classified among texts, one of which names the concept.

    Attributes:
        name: Name of the judge.
        clip: The CLIP.
        choices: Function of a concept that returns the candidate texts and the position of the concept's own.
        logit_scale: Factor of the cosines, > 0.
    """

    def __init__(
        self,
        name: str,
        clip: Clip,
        choices: Callable[[str], tuple[list[str], int]],
        *,
        knows: Callable[[str], bool] = bool,
        logit_scale: float = LOGIT_SCALE,
    ) -> None:
        self.name, self.clip, self.choices, self.logit_scale, self._knows = name, clip, choices, logit_scale, knows
        self._image_features = ReadOnce(lambda images: clip.image_features(list(images)))
        self._text_features: dict[tuple[str, ...], Tensor] = {}

    def knows(self, concept: str) -> bool:
        return self._knows(concept)

    def probabilities(self, images: Sequence[Image], concept: str) -> Float[Tensor, " n"]:
        logits, position = self._logits(images, concept)
        return logits.softmax(dim=1)[:, position]

    def shows(self, images: Sequence[Image], concept: str) -> list[bool]:
        logits, position = self._logits(images, concept)
        return [answer == position for answer in integers(logits.argmax(dim=1))]

    def features(self, images: Sequence[Image]) -> Float[Tensor, "n dim"]:
        return self._image_features(images)

    def _logits(self, images: Sequence[Image], concept: str) -> tuple[Float[Tensor, "n k"], int]:
        texts, position = self.choices(concept)
        key = tuple(texts)
        if key not in self._text_features:
            self._text_features[key] = self.clip.text_features(texts)
        return zero_shot_logits(self._image_features(images), self._text_features[key], self.logit_scale), position


def among(names: Sequence[str], *, named: str, plain: str) -> Callable[[str], tuple[list[str], int]]:
    """Return the choices between a concept, some other concepts, and an image of nothing in particular.

    Args:
        names: The other concepts.
        named: Text of a concept, with `{}` for its name.
        plain: Text of an image of nothing in particular.
    """

    def choices(concept: str) -> tuple[list[str], int]:
        every = list(dict.fromkeys([*names, concept]))
        return [*(named.replace("{}", name) for name in every), plain], every.index(concept)

    return choices


class _Pooled(Protocol):
    """Output of CLIP, which the stubs of transformers take for a tuple or for one without pooled rows."""

    pooler_output: Tensor


class HubClip:
    """CLIP of transformers, loaded when first used.

    Args:
        load: Function that returns the model and its processor.
    """

    def __init__(self, load: Callable[[], "tuple[CLIPModel, CLIPProcessor]"]) -> None:
        self._load = load

    @cached_property
    def _parts(self) -> "tuple[CLIPModel, CLIPProcessor]":
        return self._load()

    @torch.inference_mode()
    def image_features(self, images: list[Image]) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each image."""
        model, processor = self._parts
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        prepared = cast("Callable[..., BatchFeature]", processor)  # whose stubs leave out the common settings
        inputs = (prepared(images=batch, return_tensors="pt").to(model.device) for batch in batches)
        return _unit(torch.cat([cast("_Pooled", model.get_image_features(**batch)).pooler_output for batch in inputs]))

    @torch.inference_mode()
    def text_features(self, texts: list[str]) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each text, cut to the model's length."""
        model, processor = self._parts
        prepared = cast("Callable[..., BatchFeature]", processor)
        inputs = prepared(text=texts, return_tensors="pt", padding=True, truncation=True).to(model.device)
        return _unit(cast("_Pooled", model.get_text_features(**inputs)).pooler_output)


@checks_arguments
def clip_judge(source: str, device: str, choices: Callable[[str], tuple[list[str], int]]) -> ZeroShotJudge:
    """Return a CLIP of the local cache as a judge; it is loaded when first asked.

    Args:
        source: Repository of the Hub, or a folder.
        device: Device of the model.
        choices: Candidate texts of a concept, as `among` returns them.
    """
    return ZeroShotJudge(f"CLIP ({source}), zero-shot", _hub_clip(source, device), choices)


@cache
def _hub_clip(source: str, device: str) -> HubClip:
    return HubClip(lambda: load_clip(source, device))


def cached_clips() -> list[str]:
    """Return the CLIP models whose weights are in the local Hub cache, the largest first."""
    from huggingface_hub import try_to_load_from_cache

    return [name for name in CLIP_WEIGHTS if isinstance(try_to_load_from_cache(name, "model.safetensors"), str)]


@checks_arguments
def load_clip(source: str | Path, device: str) -> "tuple[CLIPModel, CLIPProcessor]":
    """Load a CLIP model and its processor from the local cache or a folder; nothing is downloaded."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(source, local_files_only=True).eval()
    cast("torch.nn.Module", model).to(device)  # in place; the stubs of transformers do not bind the method
    return model, CLIPProcessor.from_pretrained(source, local_files_only=True)


def _unit(features: Tensor) -> Float[Tensor, "n dim"]:
    return torch.nn.functional.normalize(features.float(), dim=1).cpu()
