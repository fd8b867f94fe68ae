"""Concept Ablation: the loss and its gradient, the prior term, what is trained, resized images."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.concept import Concept
from erasure.edits.changes import exchanged
from erasure.erasers.ca import CA
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.noised_images import NoisedDraw, reference_reads, squared_errors
from erasure.training.draws.resized_images import ResizedImages
from erasure.training.finetune import Optimisation, finetune
from erasure.training.objectives.redirect import Redirect
from erasure.training.shape import Shape
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat", anchor="dog")
BACKBONE: Any = backbone_of(tiny.sd1())
QUICK = {"images": 2, "image_steps": 2}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task_of(concept: Concept = CAT) -> TrainingTask:
    trained = BACKBONE.sites(("cross.k", "cross.v")).__contains__
    return TrainingTask(context=FitContext(backbone=BACKBONE), requests=[concept], trained=trained, batch_size=2)


def student_of(task: TrainingTask) -> Student:
    return Student(BACKBONE, task.trained, None, draws())


def gradient(objective: Redirect, task: TrainingTask, batch: NoisedDraw, student: Student) -> list[torch.Tensor]:
    value = objective.measure(task, objective.noised(task))(student, batch, 0, draws()).mean()
    return list(student(torch.autograd.grad, value, student.trained))


def test_an_anchor_that_reads_like_the_target_moves_nothing() -> None:
    task = task_of()
    student = student_of(task)
    batch = Redirect(**QUICK).noised(task).noised([0, 1], draws())
    batch = replace(batch, anchors=batch.named)
    value = Redirect(**QUICK).measure(task, Redirect(**QUICK).noised(task))(student, batch, 0, draws())
    assert not value.any()
    assert not any(each.any() for each in gradient(Redirect(**QUICK), task, batch, student))


def test_the_teacher_gives_no_gradient() -> None:
    task = task_of()
    student = student_of(task)
    with torch.no_grad():
        for leaf in student.trained:
            leaf += 0.05 * torch.randn(leaf.shape, generator=draws(1))
    objective = Redirect(**QUICK)
    batch = objective.noised(task).noised([0, 1], draws())
    moving = gradient(objective, task, batch, student)
    current = {leaf.name: each.detach().clone() for leaf, each in student.leaves.items()}
    # The same aim, computed beforehand by a model that stands still.
    still = replace(task, reference=lambda: exchanged(BACKBONE.parameters(task.trained), current))
    fixed = gradient(Redirect(**QUICK, teacher="original"), still, batch, student)
    for one, other in zip(moving, fixed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_both_goals_agree_where_the_anchor_is_predicted_perfectly() -> None:
    """With eps(x_t, a) in the place of the noise, the two losses have one gradient."""
    task = task_of()
    student = student_of(task)
    batch = Redirect(**QUICK).noised(task).noised([0, 1], draws())
    batch = replace(batch, truth=reference_reads(task, batch, batch.anchors))
    one, other = (gradient(Redirect(**QUICK, goal=goal), task, batch, student) for goal in ("anchor", "noise"))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)


def test_the_prior_is_the_denoising_loss_of_the_anchor() -> None:
    task = task_of()
    student = student_of(task)
    plain, held = Redirect(**QUICK), Redirect(**QUICK, prior=3.0)
    images = plain.noised(task)
    batch = images.noised([0, 1], draws())
    one, other = (each.measure(task, images)(student, batch, 0, draws()).detach() for each in (plain, held))
    expected = squared_errors(reference_reads(task, batch, batch.anchors), batch.truth)
    torch.testing.assert_close(other - one, 3 * expected, rtol=1e-3, atol=1e-4)


def test_the_least_squares_of_keys_and_values_reach_the_closed_form() -> None:
    """One token and a linear layer: W c = W_0 a, of all W the one nearest to W_0 (UCE without a pull)."""
    generator = draws(2)
    weight, target, anchor = (torch.randn(*shape, generator=generator) for shape in ((3, 4), (4,), (4,)))
    moved = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([moved], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (moved @ target - weight @ anchor).square().sum().backward()
        optimizer.step()
    closed = weight + torch.outer(weight @ (anchor - target), target) / target.square().sum()
    torch.testing.assert_close(moved.detach(), closed, rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    predicted, truth = (torch.randn(2, 4, 4, 4, generator=draws(seed)) for seed in (3, 4))
    mask = torch.zeros(2, 1, 4, 4)
    mask[:, :, 1:3, 1:4] = 1.0
    results = []
    for filling in (0.0, 9.0):
        prediction = torch.where(mask.bool(), predicted, torch.full_like(predicted, filling)).requires_grad_()
        loss = squared_errors(prediction, truth, mask).sum()
        results.append((loss.detach(), torch.autograd.grad(loss, prediction)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    whole = squared_errors(predicted, truth, torch.ones_like(mask))
    torch.testing.assert_close(whole, squared_errors(predicted, truth))


def test_resized_images_have_masks_and_words_for_their_size() -> None:
    images = ResizedImages(FitContext(backbone=BACKBONE), [CAT], shows="anchor", **QUICK)
    batch = images.noised([0, 1] * 8, draws())
    assert batch.mask is not None
    assert batch.mask.shape == (16, 1, *batch.latents.shape[2:])
    shown: Conditioning = batch.named
    assert any(prompt.startswith(("a far away ", "very small ")) for prompt in shown.prompts)
    assert all(
        "dog" in anchor and "cat" in named for anchor, named in zip(batch.anchors.prompts, shown.prompts, strict=True)
    )


def test_more_prior_moves_the_anchor_less() -> None:
    shifts = []
    for prior in (0.0, 100.0):
        task = task_of()
        objective = Redirect(**QUICK, prior=prior, teacher="original")
        changes = finetune(
            BACKBONE, task.trained, objective.loss(task), Optimisation(steps=12, lr=1e-3, optimizer="adam")
        )
        batch = objective.noised(task).noised([0, 1], draws(9))
        before = reference_reads(task, batch, batch.anchors)
        weights = BACKBONE.parameters(changes.__contains__)
        moved = {name: weights[name].detach() + change.of(weights[name]).float() for name, change in changes.items()}
        with exchanged(weights, moved):
            after = reference_reads(task, batch, batch.anchors)
        shifts.append(float((squared_errors(after, batch.truth) - squared_errors(before, batch.truth)).mean()))
    assert shifts[1] < shifts[0]


@pytest.mark.parametrize("weights", ["kv", "attention", "full"])
def test_the_trained_weights_are_those_of_the_setting(weights: Any) -> None:
    eraser = CA(**{**CA.quick, "weights": weights, "resize": False, "steps": 1})
    changed = set(eraser.fit([CAT], FitContext(backbone=BACKBONE)).changes)
    sites = BACKBONE.sites()
    if weights == "kv":
        assert changed == {name for name, site in sites.items() if site.role in ("cross.k", "cross.v")}
    elif weights == "attention":
        assert {sites[name].role.partition(".")[0] for name in changed} == {"cross", "self"}
    else:
        assert changed == set(sites)


def test_images_are_resized_where_the_autoencoder_allows_it(monkeypatch: Any) -> None:
    assert CA().objective(BACKBONE).resize
    assert not CA(resize=False).objective(BACKBONE).resize
    monkeypatch.setattr(BACKBONE.pipe, "vae", torch.nn.Identity())
    assert not CA().objective(BACKBONE).resize
    with pytest.raises(Exception, match=r"resize: expected a model with AutoencoderKL, got Identity\."):
        ResizedImages(FitContext(backbone=BACKBONE), [CAT], **QUICK)


def test_images_of_the_anchor_are_not_weighed_by_what_is_forgotten() -> None:
    eraser = CA(**{**CA.quick, "resize": False}, shape=Shape(unforgotten=True))
    with pytest.raises(Exception, match=r"shape\.unforgotten: expected an objective that weighs single images"):
        eraser.fit([CAT], FitContext(backbone=BACKBONE))
