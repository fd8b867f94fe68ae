"""A-STAR as diffusers pipelines (Agarwal et al., ICCV 2023, arXiv:2306.14544)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from erasure.backbones.conditioning import Offsets, first_end_of_text, tokenized
from erasure.backbones.sd import StableDiffusion
from erasure.backbones.sdxl import StableDiffusionXL
from erasure.errors import InputError
from erasure.guidance.a_star import AStarLoss
from erasure.guidance.attention import OnGuided
from erasure.guidance.map_reading import Named
from erasure.guidance.words import owners, positions_in
from erasure.typed_torch import integers

from .signatures import Class, with_call

_SETTINGS = tuple(item.name for item in fields(AStarLoss))
Layout = Sequence[Any] | Mapping[str, Any] | None
"""Regions of one prompt's concepts, in their order or by their words."""

_BOX_SIDE = 256  # of the mask that a box is drawn into, before it is brought to the size of the maps


class AStarMixin:
    """Gives a Stable Diffusion pipeline the guidance of A-STAR: its call takes the concepts to keep apart and alive.

    The call is that of the base pipeline, with its parameters and results, and these further keyword arguments; without
    `concepts` and `token_indices` it is the base pipeline's call.

    Args:
        concepts: Words or phrases of the prompt, each a concept. For a list of prompts, a list of them for each.
        token_indices: In the place of `concepts`, the token positions of each concept, a number or several; 0 is the
            start of the text. For a list of prompts, such a list for each.
        layout: Regions of the concepts, in their order or by their words: a box (left, top, right,
            bottom) in shares of the image from 0 to 1, or a mask, an image or array that is bright (1) there; None
            leaves a concept free. For a list of prompts, a list of such layouts.
        on_guided: Called after each guided step with a `GuidedStep`.
        alpha, segregation_scale, retention_scale, schedule, ...: The settings of `AStarLoss`.

    Raises:
        InputError: Concepts that the prompt does not hold, positions outside of it, settings out of range; it is a
            ValueError.
    """

    tokenizer: PreTrainedTokenizerBase
    backbone: type[StableDiffusion]

    def __call__(
        self,
        *args: object,
        concepts: Sequence[Any] | None = None,
        token_indices: Sequence[Any] | None = None,
        layout: object = None,
        on_guided: OnGuided | None = None,
        **kwargs: object,
    ) -> Any:
        # The base pipeline's, which a mixin cannot name.
        base = super().__call__  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
        call = cast("Callable[..., Any]", base)
        settings: dict[str, Any] = {name: kwargs.pop(name) for name in _SETTINGS if name in kwargs}
        if concepts is None and token_indices is None:
            if settings or layout is not None or on_guided is not None:
                raise InputError(
                    f"concepts: expected the words to guide, got none, but {', '.join(settings) or 'a layout'}."
                    " Name them, as in concepts=['cat', 'dog']."
                )
            return call(*args, **kwargs)
        if concepts is not None and token_indices is not None:
            raise InputError("token_indices: expected either them or concepts, got both. Leave one out.")
        loss = AStarLoss(**settings)
        bound = inspect.signature(call).bind(*args, **kwargs).arguments
        named = self._named(bound, concepts, token_indices, layout)
        copies = bound.get("num_images_per_prompt") or 1
        rows = [row for row in named for _ in range(copies)]
        with loss.guiding(cast(DiffusionPipeline, self), lambda: rows, on_guided=on_guided):
            return call(*args, **kwargs)

    def _named(
        self,
        bound: Mapping[str, Any],
        concepts: Sequence[Any] | None,
        token_indices: Sequence[Any] | None,
        layout: object,
    ) -> list[Named]:
        """Return where the concepts of each prompt are."""
        prompt, embeds = bound.get("prompt"), bound.get("prompt_embeds")
        listed = concepts if concepts is not None else token_indices
        if prompt is None:
            if embeds is None or token_indices is None:
                raise InputError(
                    "concepts: expected a prompt to find them in, got none. Give the prompt, or token_indices."
                )
            several = len(embeds) > 1
            n, last = len(embeds), embeds.shape[1] - 1
            texts = [_Prompt(text="", offsets=(), end=last)] * n
        else:
            if concepts is not None and bound.get("prompt_2") not in (None, prompt):
                raise InputError("concepts: expected one prompt, got another prompt_2. Give token_indices instead.")
            several = not isinstance(prompt, str)
            texts = self._read([prompt] if isinstance(prompt, str) else list(prompt))
        asks = _one_each("concepts" if concepts is not None else "token_indices", listed, len(texts), several)
        layouts = _one_each("layout", layout, len(texts), several) if layout is not None else [None] * len(texts)
        find = _named_by_words if concepts is not None else _named_by_position
        return [find(text, ask, where) for text, ask, where in zip(texts, asks, layouts, strict=True)]

    def _read(self, prompts: Sequence[str]) -> list["_Prompt"]:
        convert = getattr(self, "maybe_convert_prompt", None)  # writes learned tokens of several vectors out
        texts = [str(convert(prompt, self.tokenizer)) if convert is not None else prompt for prompt in prompts]
        ids, offsets = tokenized(self.tokenizer, texts)
        ends = integers(first_end_of_text(ids, self.tokenizer))
        return [_Prompt(text=text, offsets=row, end=end) for text, row, end in zip(texts, offsets, ends, strict=True)]


class _Prompt:
    """A prompt as the tokenizer sees it."""

    def __init__(self, *, text: str, offsets: Offsets, end: int) -> None:
        self.text, self.offsets, self.end = text, offsets, end


def _one_each(name: str, value: object, n: int, several: bool) -> list[Any]:
    """Return the value of each of n prompts."""
    entries = cast("Sequence[Any]", value) if isinstance(value, Sequence | Mapping) else ()
    if isinstance(value, str) or not len(entries):
        raise InputError(f"{name}: expected a list, got {value!r}. Give one entry a concept.")
    if not several:
        return [value]
    if len(entries) != n or any(isinstance(entry, str | int) for entry in entries):
        raise InputError(f"{name}: expected a list for each of {n} prompts, got {value!r}. Give a list of lists.")
    return list(entries)


def _named_by_words(prompt: _Prompt, words: Sequence[Any], layout: Layout) -> Named:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise InputError(f"concepts: expected words of the prompt, got {words!r}. Positions go into token_indices.")
    positions = positions_in(prompt.text, prompt.offsets, words)
    for word in words:
        if word not in positions:
            raise InputError(
                f"concepts: expected words of the prompt {prompt.text!r}, got {word!r}. Write it as it stands there."
            )
    names = tuple(positions)
    return Named(names=names, positions=list(positions.values()), end=prompt.end, layout=_masks(layout, names))


def _named_by_position(prompt: _Prompt, positions: Sequence[Any], layout: Layout) -> Named:
    lists = [[position] if isinstance(position, int) else list(position) for position in positions]
    for position in (position for row in lists for position in row):
        if not 1 <= position < prompt.end:
            raise InputError(
                f"token_indices: expected positions from 1 to {prompt.end - 1}, got {position!r}."
                " 0 is the start of the text."
            )
    names = tuple(str(position) for position in positions)
    if len(set(names)) < len(names):
        raise InputError(f"token_indices: expected each concept once, got {list(positions)!r}. Name it once.")
    owners(dict(zip(names, lists, strict=True)), prompt.text)
    return Named(names=names, positions=lists, end=prompt.end, layout=_masks(layout, names))


def _masks(layout: Layout, names: Sequence[str]) -> dict[int, Float[Tensor, "h w"]]:
    """Return a mask for each concept that was given one, by its place."""
    if layout is None:
        return {}
    if isinstance(layout, Mapping):
        unknown = [name for name in layout if name not in names]
        if unknown:
            raise InputError(f"layout: expected the concepts {', '.join(names)}, got {unknown[0]!r}. Use their words.")
        layout = [layout.get(name) for name in names]
    if len(layout) != len(names):
        raise InputError(f"layout: expected one entry for each of {len(names)} concepts, got {len(layout)}.")
    return {place: _mask(where) for place, where in enumerate(layout) if where is not None}


def _mask(where: Image.Image | np.ndarray | Tensor | Sequence[float | int]) -> Float[Tensor, "h w"]:
    if isinstance(where, Image.Image):
        return torch.as_tensor(np.asarray(where.convert("L"), dtype=np.float32) / 255)
    if isinstance(where, np.ndarray | Tensor):
        mask = torch.as_tensor(where).float()
        if mask.ndim != 2 or mask.min() < 0 or mask.max() > 1 or not mask.any():
            raise InputError(
                f"layout: expected a mask (height, width) in [0, 1] with something in it, got {tuple(mask.shape)} from"
                f" {float(mask.min())} to {float(mask.max())}. Divide 8-bit values by 255."
            )
        return mask
    box = [float(side) for side in where]
    if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise InputError(
            f"layout: expected a box (left, top, right, bottom) in shares from 0 to 1, got {tuple(where)!r}."
            " Divide pixels by the image's size."
        )
    left, top, right, bottom = (round(side * _BOX_SIDE) for side in box)
    mask = torch.zeros(_BOX_SIDE, _BOX_SIDE)
    mask[top:bottom, left:right] = 1
    return mask


def _with_signature(pipeline: Class) -> Class:
    """Give a pipeline class a call that shows what it takes, however the base's call changes."""
    parameters = inspect.signature(AStarMixin.__call__).parameters
    further = [parameters[name] for name in ("concepts", "token_indices", "layout", "on_guided")]
    further += [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type)
        for item in fields(AStarLoss)
    ]
    return with_call(pipeline, AStarMixin.__call__, further)


@_with_signature
class StableDiffusionAStarPipeline(AStarMixin, StableDiffusionPipeline):
    """Text to image with Stable Diffusion 1.x and 2.x, and A-STAR's guidance; see `AStarMixin` for what it takes."""

    backbone = StableDiffusion


@_with_signature
class StableDiffusionXLAStarPipeline(AStarMixin, StableDiffusionXLPipeline):
    """Text to image with Stable Diffusion XL, and A-STAR's guidance; see `AStarMixin` for what it takes."""

    backbone = StableDiffusionXL


@_with_signature
class StableDiffusionAStarImg2ImgPipeline(AStarMixin, StableDiffusionImg2ImgPipeline):
    """Image to image with Stable Diffusion 1.x and 2.x, and A-STAR's guidance; see `AStarMixin`."""

    backbone = StableDiffusion


@_with_signature
class StableDiffusionXLAStarImg2ImgPipeline(AStarMixin, StableDiffusionXLImg2ImgPipeline):
    """Image to image with Stable Diffusion XL, and A-STAR's guidance; see `AStarMixin`."""

    backbone = StableDiffusionXL


@_with_signature
class StableDiffusionAStarInpaintPipeline(AStarMixin, StableDiffusionInpaintPipeline):
    """Inpainting with Stable Diffusion 1.x and 2.x, and A-STAR's guidance; see `AStarMixin`."""

    backbone = StableDiffusion


@_with_signature
class StableDiffusionXLAStarInpaintPipeline(AStarMixin, StableDiffusionXLInpaintPipeline):
    """Inpainting with Stable Diffusion XL, and A-STAR's guidance; see `AStarMixin`."""

    backbone = StableDiffusionXL
