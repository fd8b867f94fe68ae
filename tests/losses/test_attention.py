"""Overlaps of maps at their limiting values."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from erasure.losses.attention import binarised, overlap, soft_iou

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
