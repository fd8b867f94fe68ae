"""The search for vectors inside a prompt: starts, updates, and their places."""

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.training.inner_attack import RunningAttack, Search, VectorAttack, inserted
from tests import tiny

AROUND = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) * 2 + 3


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_first_step_of_adam_has_the_size_of_its_rate_and_sums_keep_the_first_direction() -> None:
    gradients = [torch.tensor([[4.0, -1.0]]), torch.tensor([[-1.0, 0.5]])]
    cleared, summed = (Search(torch.zeros(1, 2), lr=0.1, clear_gradients=clear) for clear in (True, False))
    for search in (cleared, summed):
        search.move(gradients[0])
        torch.testing.assert_close(search.vectors.detach(), torch.tensor([[-0.1, 0.1]]), rtol=0, atol=1e-6)
        search.move(gradients[1])
    assert torch.equal(cleared.vectors.grad, gradients[1])  # type: ignore[arg-type]
    assert torch.equal(summed.vectors.grad, gradients[0] + gradients[1])  # type: ignore[arg-type]


def test_starts_are_uniform_or_around_what_the_model_reads() -> None:
    uniform = VectorAttack(vectors=400, start="uniform").begun(AROUND, draws()).vectors.detach()
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    normal = VectorAttack(vectors=400, spread=0.5).begun(AROUND, draws()).vectors.detach()
    torch.testing.assert_close(normal.mean(0), AROUND.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(normal.std(0), 0.5 * AROUND.std(0), rtol=0.15, atol=0)


@pytest.mark.parametrize("renewed", [True, False])
def test_vectors_go_on_or_start_anew(renewed: bool) -> None:
    attack = RunningAttack(VectorAttack(vectors=2, updates=3, renewed=renewed, spread=0.0), AROUND)
    aim = torch.zeros(2, 6)
    losses = []
    for _ in range(2):
        vectors = attack.moved(lambda vectors: (vectors - aim).square().mean(), draws())
        losses.append(float((vectors - aim).square().mean()))
        assert not vectors.requires_grad
    assert (losses[1] == losses[0]) == renewed
    assert losses[1] <= losses[0]


def test_vectors_stand_where_they_are_put_and_carry_gradient() -> None:
    read = backbone_of(tiny.sd1()).encode(["a", "a cat"])
    vectors = torch.randn(3, read.states.shape[2], generator=draws()).requires_grad_()
    states = inserted(read, vectors, [2, 76]).states
    assert torch.equal(states[0, 2:5], vectors)
    assert torch.equal(states[1, 74:77], vectors)
    assert torch.equal(states[0, :2], read.states[0, :2])
    assert torch.equal(states[0, 5:], read.states[0, 5:])
    (gradient,) = torch.autograd.grad(states.sum(), vectors)
    assert torch.equal(gradient, torch.full_like(vectors, 2.0))
    assert inserted(read, vectors[:0], [2, 2]) is read
