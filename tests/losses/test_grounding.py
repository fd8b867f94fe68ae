"""The grounding loss is zero where a word's attention is all of its object and nothing else."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from erasure.losses.grounding import grounding_loss

MASK = torch.tensor([[True, True, False, False]])


def test_a_map_that_is_its_mask_costs_nothing() -> None:
    torch.testing.assert_close(grounding_loss(MASK.float(), MASK), torch.zeros(1))


def test_a_flat_map_costs_what_the_equation_says() -> None:
    loss = grounding_loss(torch.full((1, 4), 0.25), MASK)
    pixel = -(2 * math.log(0.25) + 2 * math.log(0.75)) / 4
    torch.testing.assert_close(loss, torch.tensor([(1 - 0.5) ** 2 + pixel]))


@given(st.lists(st.floats(0.05, 0.95), min_size=4, max_size=4), st.floats(0.01, 0.04))
def test_attention_moved_onto_the_object_costs_less(values: list[float], step: float) -> None:
    maps = torch.tensor([values])
    moved = maps + step * torch.tensor([[1.0, 0.0, -1.0, 0.0]])
    assert grounding_loss(moved, MASK) < grounding_loss(maps, MASK)


def test_the_gradient_raises_attention_inside_and_lowers_it_outside() -> None:
    maps = torch.full((1, 4), 0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(grounding_loss(maps, MASK).sum(), maps)
    assert (gradient[MASK] < 0).all()
    assert (gradient[~MASK] > 0).all()


def test_a_map_of_zeros_has_a_finite_gradient() -> None:
    maps = torch.zeros(1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(grounding_loss(maps, MASK).sum(), maps)
    assert gradient.isfinite().all()
