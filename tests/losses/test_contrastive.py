"""The steering hinge against its limiting values (TRCE's specification, section 10, stage 2)."""

import pytest
import torch

from erasure.losses.contrastive import steering_hinge

SHAPE = (3, 4, 8, 8)


def three() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, safe, unsafe = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(3))
    return x, safe, unsafe


def test_it_pushes_with_constant_force_wherever_x_is() -> None:
    x, safe, unsafe = three()
    for start in (x, 2 * x, unsafe):
        at = start.clone().requires_grad_()
        # a large margin keeps the hinge from closing
        steering_hinge(at, safe, unsafe, 1e3).sum().backward()
        assert at.grad is not None
        assert torch.allclose(at.grad, 2 * (unsafe - safe) / x[0].numel(), atol=1e-12)


def test_its_values_at_both_ends_and_halfway() -> None:
    _, safe, unsafe = three()
    apart = (safe - unsafe).square().mean(dim=(1, 2, 3))
    assert steering_hinge(safe, safe, unsafe, 0.01).tolist() == [0, 0, 0]
    assert torch.allclose(steering_hinge(unsafe, safe, unsafe, 0.01), apart + 0.01)
    halfway = steering_hinge((safe + unsafe) / 2, safe, unsafe, 0.01)
    assert halfway.tolist() == pytest.approx([0.01] * 3)


def test_one_place_for_both_is_the_margin_without_a_gradient() -> None:
    x, safe, _ = three()
    x.requires_grad_()
    loss = steering_hinge(x, safe, safe, 0.01)
    assert loss.tolist() == [0.01] * 3
    loss.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_each_row_has_its_own_hinge() -> None:
    x, safe, unsafe = three()
    alone = [steering_hinge(x[i : i + 1], safe[i : i + 1], unsafe[i : i + 1], 0.1).item() for i in range(3)]
    assert steering_hinge(x, safe, unsafe, 0.1).tolist() == pytest.approx(alone)


def test_gradients_agree_with_finite_differences() -> None:
    x, safe, unsafe = (part[:2, :1, :2, :2] for part in three())
    torch.autograd.gradcheck(
        lambda *parts: steering_hinge(*parts, 5.0), tuple(part.clone().requires_grad_() for part in (x, safe, unsafe))
    )
