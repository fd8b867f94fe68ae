"""Attention capture: exact maps, with gradient, and a denoiser that does not notice."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.attention import (
    AttentionCapture,
    average_maps,
    cross_attention_layers,
    one_hot_columns,
    softmax_columns,
)
from erasure.errors import InputError, UnknownNameError
from tests.tiny import FAMILIES

TOKENS = [1, 2, 5]


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


def inputs(backbone: Backbone, n: int = 2) -> dict[str, Any]:
    latents = torch.randn(n, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    return {
        "latents": latents,
        "timestep": torch.tensor(500),
        "conditioning": backbone.encode([f"a cat and dog {i}" for i in range(n)]),
    }


@pytest.mark.parametrize("columns", [1, 3, 77])
def test_one_hot_values_give_the_softmax_columns_and_their_gradient(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 64, 8, generator=generator, requires_grad=True)
    key = torch.randn(2, 4, 77, 8, generator=generator, requires_grad=True)
    index = torch.stack([torch.randperm(77, generator=generator)[:columns] for _ in range(2)])
    weight = torch.randn(2, 4, 64, columns, generator=generator)
    ours, reference = one_hot_columns(query, key, index), softmax_columns(query, key, index)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((maps * weight).sum(), [query, key]) for maps in (ours, reference)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_a_masked_token_gets_no_attention() -> None:
    query, key = torch.randn(1, 2, 16, 8), torch.randn(1, 2, 10, 8)
    mask = torch.zeros(1, 2, 1, 10)
    mask[..., 4] = -10000.0
    columns = torch.arange(10)[None]
    for maps in (one_hot_columns(query, key, columns, mask), softmax_columns(query, key, columns, mask)):
        assert maps[..., 4].abs().max() == 0
        torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2, 16))


def test_both_implementations_agree_in_the_model_forward_and_backward(backbone: Backbone) -> None:
    found: list[tuple[dict[str, Tensor], Tensor]] = []
    for implementation in ("one-hot", "softmax"):
        given = inputs(backbone)
        given["latents"].requires_grad_()
        with AttentionCapture(backbone=backbone, tokens=TOKENS, implementation=implementation) as capture:
            backbone.predict(**given)
        loss = torch.stack([maps.square().sum() for maps in capture.maps.values()]).sum()
        found.append((capture.maps, torch.autograd.grad(loss, given["latents"])[0]))
    (maps, gradient), (reference, reference_gradient) = found
    assert set(maps) == set(reference) == set(cross_attention_layers(backbone))
    for name in maps:
        torch.testing.assert_close(maps[name], reference[name], rtol=0, atol=1e-6)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, reference_gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
def test_all_tokens_of_a_pixel_sum_to_one(dtype: torch.dtype, tolerance: float, backbone: Backbone) -> None:
    backbone.denoiser.to(dtype)
    with AttentionCapture(backbone=backbone, reduce=lambda name, maps: maps.sum(dim=-1)) as capture:
        backbone.predict(**inputs(backbone))
    assert set(capture.maps) == set(cross_attention_layers(backbone))
    for sums in capture.maps.values():
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=tolerance)


def test_reduce_sees_named_tokens_too(backbone: Backbone) -> None:
    with AttentionCapture(backbone=backbone, tokens=TOKENS, reduce=lambda name, maps: maps.mean(dim=1)) as capture:
        backbone.predict(**inputs(backbone))
    assert {maps.shape for maps in capture.maps.values()} <= {(2, 64, 3), (2, 16, 3)}


def test_capturing_changes_neither_output_nor_processors(backbone: Backbone) -> None:
    denoiser: Any = backbone.denoiser
    processors = dict(denoiser.attn_processors)
    given = inputs(backbone)
    plain = backbone.predict(**given)
    with AttentionCapture(backbone=backbone, tokens=TOKENS):
        captured = backbone.predict(**given)
        assert denoiser.attn_processors == processors
    assert torch.equal(plain, captured)
    assert denoiser.attn_processors == processors


def hooks_of(backbone: Backbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.denoiser.modules())


def test_no_hook_is_left_after_an_exception(backbone: Backbone) -> None:
    before = hooks_of(backbone)
    capture = AttentionCapture(backbone=backbone, tokens=TOKENS)
    with pytest.raises(ZeroDivisionError), capture:
        1 / (before - before)
    assert hooks_of(backbone) == before
    backbone.predict(**inputs(backbone))
    assert capture.maps == {}


def test_only_named_layers_are_kept(backbone: Backbone) -> None:
    name = list(cross_attention_layers(backbone))[-1]
    with AttentionCapture(backbone=backbone, layers=[name], tokens=TOKENS) as capture:
        backbone.predict(**inputs(backbone))
    assert list(capture.maps) == [name]


def test_each_row_may_name_its_own_tokens(backbone: Backbone) -> None:
    given = inputs(backbone)
    with AttentionCapture(backbone=backbone, tokens=torch.tensor([[1, 2], [3, 4]])) as capture:
        backbone.predict(**given)
    with AttentionCapture(backbone=backbone, reduce=lambda name, maps: maps) as whole:
        backbone.predict(**given)
    for name, maps in capture.maps.items():
        expected = torch.stack([whole.maps[name][0][..., [1, 2]], whole.maps[name][1][..., [3, 4]]])
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


def test_a_later_pass_overwrites_an_earlier_one(backbone: Backbone) -> None:
    with AttentionCapture(backbone=backbone, tokens=TOKENS) as capture:
        backbone.predict(**inputs(backbone, 2))
        backbone.predict(**inputs(backbone, 3))
    assert {len(maps) for maps in capture.maps.values()} == {3}


def test_maps_are_float32_in_a_half_precision_model(backbone: Backbone) -> None:
    backbone.denoiser.to(torch.bfloat16)
    with AttentionCapture(backbone=backbone, tokens=TOKENS) as capture:
        backbone.predict(**inputs(backbone))
    assert {maps.dtype for maps in capture.maps.values()} == {torch.float32}


def test_average_maps_means_over_heads_and_layers_of_a_size() -> None:
    maps = {"a": torch.full((1, 2, 6, 3), 0.25), "b": torch.full((1, 4, 6, 3), 0.75), "c": torch.ones(1, 2, 24, 3)}
    torch.testing.assert_close(average_maps(maps, 2, 3), torch.full((1, 3, 2, 3), 0.5))
    with pytest.raises(InputError, match=r"5 x 5 pixels, got layers of \[6, 24\]"):
        average_maps(maps, 5, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_that_ends_early_has_the_same_maps_and_gradients(count: int, backbone: Backbone) -> None:
    states = backbone.encode(["a cat and a dog"])
    timestep = torch.tensor(500)
    watched = list(cross_attention_layers(backbone))
    with AttentionCapture(backbone=backbone, tokens=[1]) as order:
        backbone.predict(torch.zeros(1, *backbone.latent_shape()), timestep, states)
    first = list(order.maps)[:count]
    after = backbone.component("unet").conv_out
    found = []
    for early in (False, True):
        latents = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        latents.requires_grad_()
        runs: list[int] = []
        handle = after.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        capture = AttentionCapture(backbone=backbone, layers=first, tokens=[2, 6])
        if early:
            maps = capture.read(latents, timestep, states)
        else:
            with capture:
                backbone.predict(latents, timestep, states)
            maps = capture.maps
        handle.remove()
        loss = sum(layer.square().sum() for layer in maps.values())
        [gradient] = torch.autograd.grad(loss, latents)
        found.append((list(maps), torch.stack([layer.sum() for layer in maps.values()]), gradient))
        assert len(runs) == (0 if early else 1)
    assert found[0][0] == found[1][0] == first
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])
    assert len(watched) > count
    with AttentionCapture(backbone=backbone, layers=first, tokens=[1]) as later:  # ends early no more
        assert backbone.predict(latents.detach(), timestep, states).shape == latents.shape
    assert list(later.maps) == first


def test_wrong_layers_and_tokens_are_named() -> None:
    backbone = backbone_of(FAMILIES["sd1"]())
    with (
        pytest.raises(UnknownNameError, match="Did you mean"),
        AttentionCapture(
            backbone=backbone, layers=["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn3"], tokens=TOKENS
        ),
    ):
        pass
    with pytest.raises(InputError, match=r"attention\.tokens"):
        AttentionCapture(backbone=backbone)
    with pytest.raises(InputError, match="0 to 76, got"), AttentionCapture(backbone=backbone, tokens=[77]):
        backbone.predict(**inputs(backbone))
