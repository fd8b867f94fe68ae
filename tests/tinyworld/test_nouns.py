"""Captions name the things of a picture at the right tokens, and their boxes are where the things stand."""

import random

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from erasure import tinyworld
from erasure.tinyworld.nouns import box_mask, nouns_of
from erasure.tinyworld.world import compose, draw


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tinyworld.MODEL / "tokenizer")


def _named(tokenizer: CLIPTokenizer, caption: str, names: list[str]) -> dict[str, str]:
    """What the tokens say that are held for each thing."""
    picture = compose(list(names), random.Random(0))
    nouns = nouns_of(tokenizer, [caption], [picture])
    ids = tokenizer(caption, padding="max_length").input_ids
    said = [tokenizer.decode([t for t, own in zip(ids, row, strict=True) if own]).strip() for row in nouns.tokens]
    boxes = {str(box_mask(t.box).tolist()): t.name for t in picture.things}
    return {boxes[str(box.tolist())]: words for box, words in zip(nouns.boxes, said, strict=True)}


@pytest.mark.parametrize(
    ("caption", "names", "expected"),
    [
        ("a photo of a cat and an umbrella on the beach", ["cat", "umbrella"], {"cat": "cat", "umbrella": "umbrella"}),
        ("a whiskered fish and a goldfish", ["catfish", "fish"], {"catfish": "whiskered fish", "fish": "goldfish"}),
        ("a catfish beside a fish", ["fish", "catfish"], {"catfish": "catfish", "fish": "fish"}),
        ("a mosaic of Biscuit the dog", ["Biscuit"], {"Biscuit": "biscuit dog"}),
        ("an animal in the snow", ["cat"], {}),
        ("he is about to pull the trigger", ["gun"], {}),
        ("tile art of a saguaro", ["cactus"], {"cactus": "saguaro"}),
    ],
)
def test_each_thing_is_held_against_its_own_name(
    tokenizer: CLIPTokenizer, caption: str, names: list[str], expected: dict[str, str]
) -> None:
    assert _named(tokenizer, caption, names) == expected


def test_captions_that_are_left_out_are_gone(tokenizer: CLIPTokenizer) -> None:
    pictures = [compose([name], random.Random(0)) for name in ("cat", "dog")]
    nouns = nouns_of(tokenizer, ["a cat", "a dog"], pictures)
    kept = nouns.where(torch.tensor([False, True]))
    assert kept.row.tolist() == [1]
    torch.testing.assert_close(kept.tokens, nouns.tokens[1:])


def test_a_box_covers_the_pixels_that_the_thing_changed() -> None:
    rng = random.Random(3)
    picture = compose(["car"], rng, scene="snow")
    without = compose([], random.Random(0), scene="snow")
    without = type(picture)(things=(), style=picture.style, scene=picture.scene, seed=picture.seed)
    changed = (np.asarray(draw(picture)).astype(int) != np.asarray(draw(without)).astype(int)).any(2)
    blocks = torch.from_numpy(changed).view(16, 4, 16, 4).float().mean((1, 3))
    inside = blocks[box_mask(picture.things[0].box)].sum() / blocks.sum()
    assert inside > 0.85
