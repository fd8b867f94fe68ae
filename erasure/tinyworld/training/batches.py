"""Batches of drawings and captions on the training's device."""

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .. import models
from ..data import Drawings
from ..oracle import as_pixels
from .recipe import Recipe

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def batch(drawings: Drawings, rng: np.random.Generator, size: int, device: str) -> tuple[NDArray[np.int64], Tensor]:
    """Draw rows with replacement; return them and their pixels (n, 3, 64, 64) in [-1, 1]."""
    rows = rng.integers(0, len(drawings.pictures), size)
    return rows, as_pixels(np.stack([drawings.pixels[i] for i in rows])).to(device)


def chunks(drawings: Drawings, n: int, size: int) -> Iterator[Tensor]:
    """Yield the pixels of the first n drawings in order, `size` at a time, in [-1, 1]."""
    for start in range(0, n, size):
        yield as_pixels(drawings.pixels[start : start + size])


def channels_last(module: AnyModule, recipe: Recipe) -> AnyModule:
    """Move a module to the recipe's device, its convolutions channels last: half the time on a CPU."""
    nn.Module.to(module, recipe.device)
    nn.Module.to(module, memory_format=torch.channels_last)
    return module


def wording(rng: np.random.Generator) -> random.Random:
    """Return the generator of the captions' wording."""
    return random.Random(int(rng.integers(2**62)))


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str], device: str) -> Tensor:
    """Return the token ids (n, 32) of texts, padded and truncated."""
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=models.POSITIONS, return_tensors="pt"
    )
    return encoded.input_ids.to(device)
