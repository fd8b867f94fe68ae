"""Attention drift: known maps, and a model whose attention is known to have moved."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.eval.metrics.attention_drift import (
    UNITS,
    AttentionDrift,
    DriftPrompt,
    map_size,
    overlap_index,
    retention_index,
)
from tests import tiny

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
ASK = DriftPrompt(prompt="a photo of a cat and a tree", removed="cat", beside="tree", seed=0)


def drift(pipe: Any) -> AttentionDrift:
    return AttentionDrift(pipe=pipe, steps=3, places=3, size=(8, 8))


def test_a_region_that_stays_is_retained_whatever_its_scale() -> None:
    torch.testing.assert_close(retention_index(torch.stack([LEFT, 0.1 * LEFT, 0.3 * LEFT])), torch.tensor(1.0))


def test_a_region_that_moves_away_is_lost() -> None:
    torch.testing.assert_close(retention_index(torch.stack([LEFT, 1 - LEFT])), torch.tensor(0.0))


def test_overlap_of_scaled_and_of_disjoint_maps() -> None:
    steps = torch.stack([LEFT, LEFT])
    torch.testing.assert_close(overlap_index(steps, 0.2 * steps), torch.tensor(1.0))
    torch.testing.assert_close(overlap_index(steps, 1 - steps), torch.tensor(0.0))


def test_one_step_is_too_few() -> None:
    with pytest.raises(InputError, match="at least 2 steps, got 1"):
        retention_index(LEFT[None])


def test_a_change_of_the_keys_is_seen() -> None:
    pipe = tiny.sd1()
    before = drift(pipe)
    before.update([ASK])
    states = backbone_of(pipe).encode([ASK.prompt])
    cat = states.states[0, states.word_positions(0, "cat")[-1]]
    with torch.no_grad():
        for name, weight in tiny.text_weights(backbone_of(pipe)).items():
            if name.endswith("to_k.weight"):
                # W (I - c c^T / c^T c): the word's own direction gives no key.
                weight -= torch.outer(weight @ cat, cat) / (cat @ cat)
    after = drift(pipe)
    after.update([ASK])
    assert set(after.compute()) == set(UNITS)
    assert after.compute()["mass_removed"].value != pytest.approx(before.compute()["mass_removed"].value, rel=1e-4)


def test_masses_are_shares_and_stream() -> None:
    prompts = [ASK, DriftPrompt(prompt="a tree beside a cat", removed="cat", beside="tree", seed=3)]
    whole, parts = drift(tiny.sd1()), drift(tiny.sd1())
    whole.update(prompts)
    for prompt in prompts:
        parts.update([prompt])
    for name, score in whole.compute().items():
        assert score.n == 2
        assert score.value == pytest.approx(parts.compute()[name].value, rel=1e-5)
        assert 0 <= score.value <= 1 + 1e-6


def test_words_that_the_prompt_lacks() -> None:
    with pytest.raises(InputError, match="expected words of the prompt"):
        drift(tiny.sd1()).update([DriftPrompt(prompt="a photo of a cat", removed="cat", beside="tree", seed=0)])


@pytest.mark.parametrize(("family", "side"), [("sd1", 8), ("flux", 4)])
def test_without_maps_of_16_by_16_the_finest_are_read(family: str, side: int) -> None:
    pipe = tiny.EVERY[family]()
    size = map_size(backbone_of(pipe))
    assert size == (side, side)
    scores = AttentionDrift(pipe=pipe, steps=3, places=3, size=size).update([ASK]).compute()
    assert 0 < scores["mass_removed"].value < 1
    assert scores["overlap"].setup.resize == f"maps of {side} x {side}"
