"""ANT: guidance kept early and reversed late, the empty prompt held, and what the releases differ in."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers.ant import ANT
from erasure.errors import InputError
from erasure.sampling import scheduled_prediction
from erasure.training.context import FitContext, TrainingTask
from erasure.training.objectives import reversal
from erasure.training.objectives.base import Objective
from erasure.training.objectives.guided import Guided
from erasure.training.objectives.reversal import Reversal
from erasure.training.selectors.gradient import GradientSaliency, largest
from erasure.training.student import Student
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1())
CAT = Concept(target="cat", anchor="dog", preserve=("bird",))
TRAINED = BACKBONE.sites(("cross",)).__contains__
TASK = TrainingTask(context=FitContext(backbone=BACKBONE), requests=[CAT], trained=TRAINED, batch_size=2)
QUICK = Reversal(sample_steps=4, keep_until=0.5)


def student_of(moved: float = 0.0) -> Student:
    student = Student(BACKBONE, TRAINED, None, torch.Generator())
    with torch.no_grad():
        for leaf in student.trained:
            leaf += moved * torch.randn(leaf.shape, generator=torch.Generator().manual_seed(7))
    return student


def value_and_gradient(objective: Objective, moved: float = 0.0) -> tuple[float, Tensor]:
    student = student_of(moved)
    value = objective.loss(TASK)(student, 0, torch.Generator().manual_seed(0))
    gradients = student(torch.autograd.grad, value, student.trained)
    return float(value.detach()), torch.cat([gradient.flatten() for gradient in gradients])


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Record timestep and output of each prediction of the loss."""
    calls: list[tuple[Tensor, Tensor]] = []

    def predict(backbone: Any, latents: Tensor, timestep: Tensor, states: Any) -> Tensor:
        output = scheduled_prediction(backbone, latents, timestep, states)
        calls.append((timestep, output.detach()))
        return output

    monkeypatch.setattr(reversal, "scheduled_prediction", predict)
    return calls


def test_without_kept_steps_and_hold_it_is_esd() -> None:
    plain = Reversal(sample_steps=4, keep_until=0, hold_weight=0, negative_guidance=1.5)
    value, gradient = value_and_gradient(plain, moved=0.02)
    expected, expected_gradient = value_and_gradient(Guided(sample_steps=4, negative_guidance=1.5), moved=0.02)
    assert value == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"keep_until": 1.0}, {"keep_until": 0.0, "negative_guidance": -1.0}], ids=["all kept", "not reversed"]
)
def test_nothing_moves_where_the_goal_is_the_original_prediction(settings: dict[str, float]) -> None:
    value, gradient = value_and_gradient(replace(QUICK, **settings))
    assert value == pytest.approx(0, abs=1e-9)
    assert gradient.norm() < 1e-4


@pytest.mark.parametrize(("eta", "guidance"), [(1.0, 1.0), (0.5, 7.5)])
def test_the_loss_at_the_start_is_that_of_the_formula(
    eta: float, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    objective = replace(QUICK, negative_guidance=eta, prediction_guidance=guidance, keep_weight=0.3)
    value, _ = value_and_gradient(objective)
    squares = []
    for _, predictions in calls[::2]:  # frozen, then the student
        target, anchor, _ = predictions.chunk(3)
        squares.append(float((target - anchor).square().mean()) * guidance**2)
    early, late = squares
    assert value == pytest.approx((1 + eta) ** 2 * late + 0.3 * (1 - eta) ** 2 * early, rel=1e-3)


@pytest.mark.parametrize("order", ["early", "late"])
def test_kept_steps_are_noisier_in_the_papers_order_and_less_noisy_in_that_of_the_trainer(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    value_and_gradient(replace(QUICK, order=order))
    kept, reversed_, signal = calls[0][0], calls[2][0], BACKBONE.schedule.alphas_cumprod
    assert (kept > reversed_) == (order == "early")
    assert (signal[kept] < signal[reversed_]) == (order == "early")
    stops = replace(QUICK, order=order, sample_steps=50, keep_until=0.14, trajectory_uses=3).stops(torch.Generator())
    assert len(stops) == 6
    kept_stops = range(7) if order == "early" else range(43, 50)
    assert all((stop in kept_stops) == (i % 2 == 0) for i, stop in enumerate(stops))


def test_the_empty_prompt_is_held_once_weights_have_moved() -> None:
    with_hold, without = (value_and_gradient(replace(QUICK, hold_weight=w), moved=0.05) for w in (1.0, 0.0))
    assert with_hold[0] > without[0]
    assert (with_hold[1] - without[1]).norm() > 1e-3 * without[1].norm()


def test_the_mask_is_of_the_largest_gradients() -> None:
    masks = largest({"a": torch.tensor([[1.0, 4.0]]), "b": torch.tensor([[3.0, 2.0]])}, 0.5)
    assert masks["a"].tolist() == [[0.0, 1.0]]
    assert masks["b"].tolist() == [[1.0, 0.0]]
    smallest = GradientSaliency(kind="entry", alpha=0.0, end="smallest", batches=1, images=2, image_steps=2, share=0.5)
    by_script = smallest.selected(TASK).masks
    by_paper = replace(smallest, end="largest").selected(TASK).masks
    both = sum(float((by_script[name] * mask).sum()) for name, mask in by_paper.items())
    assert both < 0.5 * sum(float(mask.sum()) for mask in by_paper.values())
    assert all(int(mask.sum()) == round(0.5 * mask.numel()) for mask in by_script.values())
    selector = ANT()._shape.sites
    assert isinstance(selector, GradientSaliency)
    assert (selector.kind, selector.share, selector.alpha, selector.end) == ("entry", 0.5, 0.0, "largest")
    assert ANT(mask_share=None)._shape.sites is None


def test_a_release_has_the_settings_of_its_trainer() -> None:
    single = ANT(release="single")
    assert (single.order, single.mask) == ("late", "smallest")
    several = ANT(release="several")
    assert (several.rank, several.steps, several.keep_until, several.order) == (64, 10, 0.08, "early")
    assert (several.keep_weight, several.hold_weight, several.prediction_guidance) == (0.5, 2.5, 7.5)
    assert several._objective.kept_steps == 4
    assert ANT()._objective.kept_steps == 7


def test_a_mask_of_patches_and_a_loss_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"ant\.mask_share: expected None with a rank, got 0\.5\."):
        ANT(rank=2)
    with pytest.raises(InputError, match=r"reversal\.keep_weight: expected a weight > 0"):
        ANT(keep_until=1.0, keep_weight=0.0)
