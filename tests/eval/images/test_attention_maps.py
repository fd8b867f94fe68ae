"""Pictures of where a model's words look."""

import numpy as np
import pytest
import torch
from PIL import Image

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.images.attention_maps import AttentionTrace, attention_sheet, overlaid, trace_attention
from erasure.guidance.a_star import AStar
from erasure.sampling import SamplingSettings, sample_pairs
from tests import tiny

SAMPLER = SamplingSettings(steps=3, guidance_scale=4.0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_watching_changes_no_pixel_and_sees_every_step(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    (plain,) = sample_pairs(pipe, [("a cat and a dog", 0)], SAMPLER)
    seen = trace_attention(pipe, "a cat and a dog", ["cat", "dog"], 0, SAMPLER)
    assert np.array_equal(np.asarray(seen.image), np.asarray(plain))
    assert sorted(seen.maps) == [0, 1, 2]
    assert all(maps.shape == (2, 8, 8) and maps.min() >= 0 and maps.max() <= 1 for maps in seen.maps.values())
    assert 0 <= seen.overlap(0) <= 1
    guided = trace_attention(
        pipe, "a cat and a dog", ["cat", "dog"], 0, SAMPLER, AStar(concepts=("cat", "dog"), alpha=500.0)
    )
    assert not torch.equal(guided.maps[2], seen.maps[2])
    (after,) = sample_pairs(pipe, [("a cat and a dog", 0)], SAMPLER)
    assert np.array_equal(np.asarray(after), np.asarray(plain))


def test_a_word_is_watched_once() -> None:
    with pytest.raises(InputError, match="concepts: expected each once, got cat, Cat"):
        trace_attention(tiny.sd1(), "a cat", ["cat", "Cat"], 0, SAMPLER)


def test_a_trained_words_map_is_brightest_on_its_object() -> None:
    """The tiny world's maps lie on their objects: two words of one picture end far apart."""
    seen = trace_attention(
        tinyworld.load(), "a cat and a dog on a beach", ["cat", "dog"], 3, SamplingSettings(guidance_scale=4.0)
    )
    assert seen.overlap(24) < 0.2 < seen.overlap(0)


def test_the_sheet_has_a_row_for_each_concept_and_a_column_for_each_step() -> None:
    seen = AttentionTrace(
        image=Image.new("RGB", (16, 16), "blue"), maps={step: torch.rand(2, 4, 4) for step in range(9)}
    )
    sheet = attention_sheet([("plain", seen), ("guided", seen)], ["cat", "dog"], 3)
    cell, gap = 144, 8
    assert sheet.size == (gap + 4 * (cell + gap), 34 + 4 * (24 + cell + gap))
    with pytest.raises(InputError, match="columns: expected at least 2, got 1"):
        attention_sheet([("plain", seen)], ["cat", "dog"], 1)


def test_the_overlay_is_strongest_at_the_maximum() -> None:
    attention = torch.zeros(4, 4)
    attention[0, 0] = 0.5
    shown = np.asarray(overlaid(Image.new("RGB", (8, 8), "white"), attention)).astype(int)
    orange = shown[..., 0] - shown[..., 2]
    assert orange[0, 0] == orange.max() > 100
    assert orange[-1, -1] == 0


def test_a_concept_that_is_not_in_the_prompt_is_named() -> None:
    with pytest.raises(InputError, match="expected words of the prompt 'a cat', got 'dog'"):
        trace_attention(tiny.sd1(), "a cat", ["dog"], 0, SAMPLER)
