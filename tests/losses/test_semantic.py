"""Semantic preservation: cosine distances that hold one side, pooled at the right token."""

import pytest
import torch

from erasure.losses.semantic import cosine_preservation, kv_preservation, norm_preservation, pooled_position
from tests import tiny


def test_equal_orthogonal_and_opposite_features() -> None:
    one = torch.eye(2)
    assert cosine_preservation(one, one) == pytest.approx(0.0, abs=1e-6)
    assert cosine_preservation(one, one.flip(0)) == pytest.approx(1.0)
    assert cosine_preservation(one, -one) == pytest.approx(2.0)
    assert cosine_preservation(3 * one, one) == pytest.approx(0.0, abs=1e-6)  # the length does not count
    assert norm_preservation(3 * one, one) == pytest.approx(4.0)


def test_weights_choose_among_phrases() -> None:
    features, reference = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert cosine_preservation(features, reference, torch.tensor([1.0, 0.0])) == pytest.approx(0.0, abs=1e-6)
    assert cosine_preservation(features, reference, torch.tensor([1.0, 3.0])) == pytest.approx(0.75)


def test_the_reference_gets_no_gradient_and_the_features_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    (cosine_preservation(x, y) + norm_preservation(x, y)).backward()
    assert x.grad is not None
    assert x.grad.any()
    assert y.grad is None
    held = y.detach()
    assert torch.autograd.gradcheck(lambda z: cosine_preservation(z, held) + norm_preservation(z, held), x)


def test_half_precision_is_compared_in_float32() -> None:
    x = torch.randn(4, 64).half()
    assert cosine_preservation(x, x).dtype == torch.float32
    assert cosine_preservation(x, x) < 1e-6


def test_the_end_of_text_is_found_with_added_tokens_where_the_official_rule_stops_before_the_class() -> None:
    tokenizer = tiny.tokenizer("clip")
    plain = tokenizer(["a photo of a dog"], padding="max_length", return_tensors="pt").input_ids
    tokenizer.add_tokens("<new1>")
    added = tokenizer(["a photo of a <new1> dog"], padding="max_length", return_tensors="pt").input_ids
    assert pooled_position(plain, tokenizer.eos_token_id).item() == 6
    assert pooled_position(added, tokenizer.eos_token_id).item() == 7
    assert pooled_position(added, tokenizer.eos_token_id, "official_argmax").item() == 5
    assert pooled_position(plain, tokenizer.eos_token_id, "official_argmax").item() == 6


def test_keys_and_values_that_turn_or_grow_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(6, 4, generator=generator)
    original = {"to_k": torch.randn(3, 4, generator=generator), "to_v": torch.randn(3, 4, generator=generator)}
    assert kv_preservation(states, original, original) == pytest.approx(0.0, abs=1e-6)
    grown = {name: 2 * weight for name, weight in original.items()}
    assert kv_preservation(states, grown, original) == pytest.approx(1.0)  # (2 - 1)^2, and no turn
    turned = {name: -weight for name, weight in original.items()}
    assert kv_preservation(states, turned, original) == pytest.approx(2.0)
    one = {"to_k": turned["to_k"], "to_v": original["to_v"]}
    assert kv_preservation(states, one, original) == pytest.approx(1.0)
