"""Tokens that name the things of a picture, and the things' boxes: targets of the denoiser's attention maps."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from . import models
from .vocabulary import INDIVIDUALS, SYNONYMS
from .world import SIZE, Picture


@dataclass(frozen=True, kw_only=True)
class Nouns:
    """Things named by a batch of captions, a row each.

    Attributes:
        row: Index of the caption in the batch.
        tokens: 1 at the tokens of the thing's name.
        boxes: Pixels of the latents inside the thing's box.
    """

    row: Int[Tensor, " n"]
    tokens: Float[Tensor, "n positions"]
    boxes: Bool[Tensor, "n latent latent"]

    def to(self, device: str) -> "Nouns":
        """Return the same on a device."""
        return Nouns(row=self.row.to(device), tokens=self.tokens.to(device), boxes=self.boxes.to(device))

    def where(self, kept: Bool[Tensor, " batch"]) -> "Nouns":
        """Return the nouns of the captions that `kept` selects."""
        chosen = kept[self.row]
        return Nouns(row=self.row[chosen], tokens=self.tokens[chosen], boxes=self.boxes[chosen])


def nouns_of(tokenizer: CLIPTokenizer, captions: Sequence[str], pictures: Sequence[Picture]) -> Nouns:
    """Find the things that each caption names by a specific word: name, synonym, or an individual's class.

    A family word ("an animal") or a hint without a name is ignored.
    """
    encoded = tokenizer(
        list(captions), truncation=True, max_length=models.POSITIONS, return_offsets_mapping=True, padding="max_length"
    )
    rows, tokens, boxes = [], [], []
    for i, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        for i_thing, thing in enumerate(picture.things):
            spans = _spans(caption, picture, i_thing)
            named = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"][i]]
            if any(named):
                rows.append(i)
                tokens.append(named)
                boxes.append(box_mask(thing.box))
    return Nouns(
        row=torch.tensor(rows, dtype=torch.long),
        tokens=torch.tensor(tokens, dtype=torch.float32).view(-1, models.POSITIONS),
        boxes=torch.stack(boxes) if boxes else torch.zeros(0, models.LATENTS, models.LATENTS, dtype=torch.bool),
    )


def _spans(caption: str, picture: Picture, i_thing: int) -> list[tuple[int, int]]:
    """Return the spans of the caption that name the i-th thing; the longest name wins ("whiskered fish")."""
    owner = {word.lower(): i for i, thing in enumerate(picture.things) for word in _words(thing.name)}
    names = "|".join(sorted(map(re.escape, owner), key=len, reverse=True))
    matches = re.finditer(rf"\b(?:{names})\b", caption, flags=re.IGNORECASE)
    return [match.span() for match in matches if owner[match[0].lower()] == i_thing]


def _words(name: str) -> tuple[str, ...]:
    cls = INDIVIDUALS.get(name)
    return (name, cls) if cls else (name, *SYNONYMS.get(name, ()))


def box_mask(box: tuple[float, float, float, float]) -> Bool[Tensor, "latent latent"]:
    """Return the mask of the latents' pixels whose centres are inside a box, in the picture's pixels."""
    step = SIZE / models.LATENTS
    centre = (torch.arange(models.LATENTS) + 0.5) * step
    across, down = ((centre >= box[i]) & (centre <= box[i + 2]) for i in (0, 1))
    return down[:, None] & across[None]
