"""SalUn: the mask, what it leaves alone, and what is trained beside it."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.erasers.salun import SalUn
from erasure.training.context import FitContext, TrainingTask
from erasure.training.selectors.saliency import Saliency, accumulated
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat", anchor="dog", preserve=("bird",))
BACKBONE: Any = backbone_of(tiny.sd1())
QUICK: dict[str, Any] = {**SalUn.quick}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task(concept: Concept = CAT, roles: tuple[str, ...] | None = None) -> TrainingTask:
    trained = BACKBONE.sites(roles).__contains__
    return TrainingTask(context=FitContext(backbone=BACKBONE), requests=[concept], trained=trained)


def test_opposite_batches_cancel_with_their_sign_alone() -> None:
    gradient = torch.tensor([1.0, -2.0])
    batches = [[gradient, None], [-gradient, None]]
    assert not accumulated(batches, "signed")[0].any()  # type: ignore[union-attr]
    torch.testing.assert_close(accumulated(batches, "absolute")[0], torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(accumulated(batches, "squared")[0], torch.tensor([2.0, 8.0]))
    assert accumulated(batches, "signed")[1] is None


def test_the_saliency_of_a_linear_model_is_its_analytic_gradient_and_its_scale_does_not_count() -> None:
    weight = torch.randn(3, 4, generator=draws()).requires_grad_()
    inputs, outputs = torch.randn(5, 4, generator=draws(1)), torch.randn(5, 3, generator=draws(2))
    loss = (inputs @ weight.T - outputs).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    analytic = 2 * (inputs @ weight.detach().T - outputs).T @ inputs
    torch.testing.assert_close(gradient, analytic, rtol=1e-4, atol=1e-4)
    scores = accumulated([[gradient]], "signed")[0]
    assert scores is not None
    masks = [Saliency().masks({"w": factor * scores.abs()}, draws())["w"] for factor in (1.0, 100.0)]
    assert torch.equal(*masks)
    assert masks[0].sum() == 6


@pytest.mark.parametrize("order", ["largest", "smallest", "random"])
def test_half_of_all_entries_are_chosen_whatever_the_order(order: Any) -> None:
    scores = {"a": torch.arange(6.0), "b": torch.full((4,), 2.0)}
    masks = Saliency(order=order).masks(scores, draws())
    assert sum(float(mask.sum()) for mask in masks.values()) == 5
    if order == "largest":
        assert masks["a"].tolist() == [0, 0, 1, 1, 1, 1], "the tie is decided once, in the order of the weights"
    each = Saliency(order=order, per="tensor").masks(scores, draws())
    assert {name: float(mask.sum()) for name, mask in each.items()} == {"a": 3, "b": 2}


def test_exactly_half_of_the_model_moves() -> None:
    selection = Saliency(**Saliency.quick).selected(task())
    total = sum(p.numel() for p in BACKBONE.parameters(task().trained).values())
    assert sum(float(mask.sum()) for mask in selection.masks.values()) == round(total / 2)
    edit = make_eraser("salun", **QUICK).fit([CAT], FitContext(backbone=BACKBONE))
    assert edit.changes.keys() == selection.names
    for name, change in edit.changes.items():
        moved = change.delta != 0
        assert not moved[selection.masks[name] == 0].any()
        # An entry of zero gradient, which Adam does not move, may be among the chosen ones.
        assert moved.sum() <= selection.masks[name].sum()


def test_a_whole_share_has_no_mask() -> None:
    selection = Saliency(share=1.0).selected(task(roles=("cross",)))
    assert not selection.masks
    assert selection.names == set(BACKBONE.sites(("cross",)))


@pytest.mark.parametrize("preserve", [("bird", "boat"), ()])
def test_what_stays_are_preserved_names_or_the_anchor(preserve: tuple[str, ...], monkeypatch: Any) -> None:
    concept = Concept(target="cat", anchor="dog", preserve=preserve)
    seen: list[str] = []
    encode = type(BACKBONE).encode
    monkeypatch.setattr(
        type(BACKBONE), "encode", lambda self, prompts: (seen.extend(prompts), encode(self, prompts))[1]
    )
    loss = SalUn(images=4, image_steps=2, batch_size=2).retaining(task(concept))
    assert any("bird" in prompt for prompt in seen) == bool(preserve)
    assert any("dog" in prompt for prompt in seen) == (not preserve)
    student = Student(BACKBONE, task(roles=("cross",)).trained, None, draws())
    assert float(loss(student, 0, draws()).detach()) > 0
