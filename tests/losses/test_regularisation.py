"""Pulls of trained weights towards a reference."""

import pytest
import torch

from erasure.losses.regularisation import ewc, l1_sp, l2_sp, normalised_fisher


def shifts() -> dict[str, torch.Tensor]:
    return {
        "a": torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=torch.float64, requires_grad=True),
        "b": torch.tensor([3.0], dtype=torch.float64, requires_grad=True),
    }


def test_they_are_means_over_all_scalars() -> None:
    found = shifts()
    assert l2_sp(found).item() == pytest.approx((1 + 4 + 0.25 + 9) / 5)
    assert l1_sp(found).item() == pytest.approx((1 + 2 + 0.5 + 3) / 5)
    fisher = {"a": torch.tensor([[1.0, 0.0], [7.0, 4.0]]), "b": torch.tensor([2.0])}
    assert ewc(found, fisher).item() == pytest.approx((1 + 0 + 0 + 1 + 18) / 5)


def test_l2_sp_has_the_gradient_of_its_formula_and_none_at_the_reference() -> None:
    found = shifts()
    l2_sp(found).backward()
    for shift in found.values():
        torch.testing.assert_close(shift.grad, 2 * shift.detach() / 5)
    still = {"a": torch.zeros(3, requires_grad=True)}
    l2_sp(still).backward()
    assert still["a"].grad is not None
    assert not still["a"].grad.any()


@pytest.mark.parametrize("loss", [l2_sp, lambda s: ewc(s, {k: torch.full_like(v, 3).detach() for k, v in s.items()})])
def test_gradients_match_finite_differences(loss: object) -> None:
    found = shifts()
    assert torch.autograd.gradcheck(lambda a, b: loss({"a": a, "b": b}), tuple(found.values()))  # type: ignore[operator]


def test_a_fisher_has_mean_one_and_of_nothing_counts_all_alike() -> None:
    squares = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[8.0]])}
    fisher = normalised_fisher(squares)
    torch.testing.assert_close(torch.cat([f.flatten() for f in fisher.values()]).mean(), torch.tensor(1.0))
    torch.testing.assert_close(fisher["b"] / fisher["a"][0], torch.tensor([[8.0]]))
    assert normalised_fisher({"a": torch.zeros(2)})["a"].tolist() == [1, 1]


def test_the_fisher_of_a_linear_model_is_its_analytic_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(3, requires_grad=True)
    inputs = torch.randn(4000, 3, generator=generator) * torch.tensor([1.0, 2.0, 4.0])
    noise = torch.randn(4000, generator=generator)
    gradients = [torch.autograd.grad((noise[i] - inputs[i] @ weight).square() / 2, weight)[0] for i in range(4000)]
    fisher = normalised_fisher({"w": torch.stack(gradients).square().mean(0)})["w"]  # x^2 in expectation: 1, 4, 16
    torch.testing.assert_close(fisher, torch.tensor([1.0, 4.0, 16.0]) / 7, rtol=0.15, atol=0)
