"""Overlaps of maps at their limiting values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erasure.losses.attention import (
    binarised,
    competing,
    leak,
    neglect,
    otsu,
    overlap,
    regions,
    retention,
    segregation,
    smoothed,
    soft_iou,
)

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
RIGHT = 1 - LEFT


def test_disjoint_and_equal_maps() -> None:
    torch.testing.assert_close(overlap(LEFT, RIGHT), torch.tensor(0.0))
    torch.testing.assert_close(soft_iou(LEFT, RIGHT), torch.tensor(0.0))
    torch.testing.assert_close(overlap(LEFT, LEFT), torch.tensor(0.5))
    torch.testing.assert_close(soft_iou(LEFT, LEFT), torch.tensor(1.0))


@given(st.lists(st.floats(0.01, 1), min_size=8, max_size=8))
def test_the_soft_iou_follows_from_the_overlap(values: list[float]) -> None:
    one, other = torch.tensor(values, dtype=torch.float64).view(2, 2, 2)
    x = overlap(one, other)
    torch.testing.assert_close(soft_iou(one, other), x / (1 - x), rtol=1e-3, atol=1e-5)


def test_maps_of_a_batch_are_apart() -> None:
    torch.testing.assert_close(overlap(torch.stack([LEFT, LEFT]), torch.stack([LEFT, RIGHT])), torch.tensor([0.5, 0.0]))


def test_a_region_is_where_a_map_is_at_least_half_its_maximum() -> None:
    maps = torch.tensor([[0.1, 0.2], [0.04, 0.0]], requires_grad=True)
    region = binarised(maps)
    assert region.tolist() == [[True, True], [False, False]]
    assert not region.requires_grad


def test_map_distance_is_bounded_and_does_not_mind_order() -> None:
    from erasure.losses.attention import map_distance

    one, other = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)
    one[..., 0], other[..., 1] = 1, 1
    assert map_distance(one, one).item() == 0
    assert map_distance(one, other).item() == 2  # the furthest that two distributions can be apart
    a, b = torch.rand(2, 2, 3, 5, 4).softmax(-1)
    assert 0 < map_distance(a, b) < 2
    torch.testing.assert_close(map_distance(a.flip(0, 1), b.flip(0, 1)), map_distance(a, b))


def some_maps(n: int = 2, k: int = 3, side: int = 5) -> torch.Tensor:
    return torch.rand(n, k, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_segregation_is_zero_apart_and_half_a_pair_together_without_a_gradient() -> None:
    assert segregation(torch.stack([LEFT, RIGHT])[None]).tolist() == [0.0]
    for k, expected in ((2, 0.5), (3, 1.5)):
        maps = LEFT.expand(1, k, 2, 2).clone().requires_grad_()
        loss = segregation(maps)
        assert loss.item() == pytest.approx(expected)
        [gradient] = torch.autograd.grad(loss.sum(), maps)
        assert not gradient.any()
    assert segregation(some_maps(k=1)).tolist() == [0.0, 0.0]


def test_the_gradient_of_a_pair_gives_the_pixel_to_the_stronger() -> None:
    """Specification 3, consequence 3: (s D - N) / D^2, s being 1 where a map is the smaller."""
    maps = some_maps(n=1, k=2).requires_grad_()
    [gradient] = torch.autograd.grad(segregation(maps).sum(), maps)
    one, other = maps.detach()[0]
    smaller = (one < other).double()
    total, common = (one + other).sum(), one.minimum(other).sum()
    torch.testing.assert_close(gradient[0, 0], (smaller * total - common) / total**2)
    torch.testing.assert_close(gradient[0, 1], ((1 - smaller) * total - common) / total**2)


def test_segregation_alone_is_won_by_shrinking_and_retention_is_not() -> None:
    maps = some_maps(n=1, k=2)
    masks = regions(maps).double()
    small = maps * torch.tensor([1.0, 0.01])[None, :, None, None]
    assert segregation(small) < 0.05 * segregation(maps)
    assert retention(small, masks) > retention(maps, masks)


def test_retention_is_half_on_the_mask_and_one_off_it() -> None:
    masks = torch.stack([LEFT, RIGHT])[None]
    assert retention(masks, masks).item() == pytest.approx(1.0)
    assert retention(masks.flip(1), masks).item() == pytest.approx(2.0)
    total = segregation(some_maps()) + retention(some_maps(), regions(some_maps()).double())
    assert ((total >= 1.5) & (total <= 3 + 0.5 * 3)).all()


def test_a_leak_pushes_the_erased_concept_alone() -> None:
    erased, kept = (part.clone().requires_grad_() for part in (LEFT[None], torch.stack([LEFT, RIGHT])[None]))
    assert leak(LEFT[None], RIGHT[None, None]).tolist() == [0.0]
    loss = leak(erased, kept)
    assert loss.tolist() == [1.0]
    loss.sum().backward()
    assert kept.grad is None
    assert erased.grad is not None
    assert (erased.grad >= 0).all()


def test_neglect_is_of_the_weakest_concept() -> None:
    maps = torch.stack([LEFT, 0.3 * RIGHT])[None]
    assert neglect(maps).item() == pytest.approx(0.7)


def test_losses_of_a_batch_are_those_of_its_rows() -> None:
    maps, masks = some_maps(), regions(some_maps()).double()
    for loss in (segregation, neglect, lambda rows: retention(rows, masks[: len(rows)])):
        assert loss(maps)[0].item() == pytest.approx(loss(maps[:1]).item())


def test_gradients_agree_with_finite_differences() -> None:
    maps = some_maps().requires_grad_()
    masks = regions(some_maps()).double()
    for loss in (segregation, neglect, lambda rows: retention(rows, masks), lambda rows: leak(rows[:, 0], masks)):
        assert torch.autograd.gradcheck(loss, (maps,))
    for change in (competing, smoothed):
        assert torch.autograd.gradcheck(change, (0.01 * some_maps(side=3).requires_grad_(),))


def test_otsu_parts_two_heaps_and_finds_none_in_one() -> None:
    maps = torch.tensor([[[0.1, 0.12], [0.8, 0.9]], [[0.2, 0.2], [0.2, 0.2]]])
    assert otsu(maps).tolist() == [[[False, False], [True, True]], [[False, False], [False, False]]]
    assert regions(maps, "otsu").equal(otsu(maps))
    assert regions(maps, "half").equal(binarised(maps))
    values = torch.rand(6, 6, generator=torch.Generator().manual_seed(2))
    flat = values.flatten()
    variances = {
        t.item(): (flat <= t).sum() * (flat > t).sum() * (flat[flat > t].mean() - flat[flat <= t].mean()) ** 2
        for t in flat
        if t < flat.max()
    }
    best = max(variances, key=lambda t: variances[t].item())
    assert otsu(values).equal(values > best)


def test_competing_tokens_share_each_pixel_and_keep_their_order() -> None:
    maps = some_maps() * 0.1
    found = competing(maps)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 5, 5, dtype=torch.float64))
    assert found.argmax(1).equal(maps.argmax(1))
    assert competing(maps, scale=0.0).flatten().tolist() == pytest.approx([1 / 3] * 150)


def test_smoothing_keeps_what_is_flat_and_spreads_a_point_by_the_published_weights() -> None:
    flat = torch.full((1, 2, 5, 5), 0.3)
    torch.testing.assert_close(smoothed(flat), flat)
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1.0
    spread = smoothed(point)[0, 0]
    assert spread.sum().item() == pytest.approx(1.0)
    assert (spread[2, 3] / spread[2, 2]).item() == pytest.approx(torch.e**-1, rel=1e-5)
