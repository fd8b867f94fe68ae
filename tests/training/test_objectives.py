"""The mathematics of the objectives, on tensors of which the answer is known."""

import math

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.layer_readings import main_directions
from erasure.concept import Concept
from erasure.guidance.capsule import Capsule
from erasure.losses.preference import advantage, calibrated_negative, scale_of_confidence
from erasure.training.context import FitContext, TrainingTask
from erasure.training.draws.features import likeness
from erasure.training.draws.noised_images import NoisedImages, early_timesteps, reference_reads, squared_errors
from erasure.training.objectives.boundary import Boundary, divergence, inverse_temperature, struck_out
from erasure.training.objectives.calibrated import Calibrated, confidence_scale
from erasure.training.objectives.deviate import deviation
from erasure.training.objectives.margin import Margin, contrasted
from erasure.training.objectives.noised import remembered_still
from erasure.training.objectives.replace import replaced
from erasure.training.student import Student
from tests import tiny

CAT = Concept(target="cat", preserve=("dog", "bird"))


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def task_of(family: str = "sd1", concept: Concept = CAT) -> TrainingTask:
    backbone = backbone_of(tiny.EVERY[family]())
    trained = backbone.sites(("cross", "joint")).__contains__
    return TrainingTask(context=FitContext(backbone=backbone), requests=[concept], trained=trained, batch_size=2)


@pytest.mark.parametrize("family", ["sd2", "sd3"])
def test_images_are_noised_as_the_schedule_says_and_early_ones_are_the_noisiest(family: str) -> None:
    task = task_of(family)
    schedule = task.backbone.schedule
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2, early=0.5)
    batch = images.noised([0, 1], torch.Generator().manual_seed(0))
    clean = images.latents.float()
    if family == "sd3":
        sigma = (batch.timesteps / schedule.total)[:, None, None, None]
        noise = batch.truth + clean
        torch.testing.assert_close(batch.latents, (1 - sigma) * clean + sigma * noise, atol=1e-4, rtol=1e-4)
    else:
        alpha = schedule.alphas_cumprod[batch.timesteps][:, None, None, None]
        expected = alpha.sqrt() * clean + (1 - alpha).sqrt() * batch.truth
        torch.testing.assert_close(batch.latents, expected, atol=1e-4, rtol=1e-4)
    drawn = early_timesteps(schedule, 200, 0.5, torch.Generator().manual_seed(1))
    assert drawn.min() >= schedule.timesteps(999)[499]
    assert batch.prompts[0].named == "cat"
    assert batch.prompts[1].named == "a cat"


def test_the_calibrated_loss_is_unlikelihood_at_beta_one_and_falls_with_the_targets_error() -> None:
    logits = draws(2, 3, 3)
    expected = -2 * (1 - torch.sigmoid(logits)).log().flatten(1).mean(1)
    torch.testing.assert_close(calibrated_negative(logits), expected)
    anchor, truth, named = draws(1, 4, 2, 2, seed=1), draws(1, 4, 2, 2, seed=2), draws(1, 4, 2, 2, seed=3)
    losses = []
    for factor in (1.0, 2.0, 3.0, 100.0):
        prediction = (truth + factor * (named - truth)).requires_grad_()
        loss = calibrated_negative(advantage(prediction, anchor, truth)).sum()
        (gradient,) = torch.autograd.grad(loss, prediction)
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert gradient.abs().max() < 1e-6, "what is forgotten is not pushed further"


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_its_slope_is_twice_the_confidence(beta: float) -> None:
    logits = draws(1, 2, 2).requires_grad_()
    (slope,) = torch.autograd.grad(calibrated_negative(logits, beta).sum(), logits)
    torch.testing.assert_close(4 * slope, 2 * torch.sigmoid(beta * logits.detach()))


def test_the_scale_makes_the_reference_as_confident_as_it_was_set() -> None:
    advantages = draws(500).abs() * 1e-3
    tau = scale_of_confidence(torch.cat([advantages, -advantages]), 0.8)
    assert float(torch.sigmoid(tau * advantages).mean()) == pytest.approx(0.8, abs=1e-5)
    assert scale_of_confidence(torch.zeros(3)) == 1.0


def test_a_concept_that_equals_its_anchor_has_no_confidence_to_lose() -> None:
    task = task_of()
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2)
    batch = images.noised([0, 1], torch.Generator().manual_seed(0))
    anchor = reference_reads(task, batch, batch.anchors)
    assert not advantage(anchor, anchor, batch.truth).any()
    torch.testing.assert_close(
        calibrated_negative(torch.zeros(2, 3, 3)), torch.full((2,), 2 * math.log(2)), atol=1e-6, rtol=0
    )


def test_the_margin_acts_within_delta_of_the_negative_alone_and_fades() -> None:
    x, positive = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    near, far = torch.full((1, 1, 2, 2), 0.05), torch.full((1, 1, 2, 2), 5.0)
    weight = torch.tensor([0.5])
    assert float(contrasted(x, positive, far, weight, 0.01)) == pytest.approx(1.0)
    assert float(contrasted(x, positive, near, weight, 0.01)) == pytest.approx(1.0 + 0.5 * (0.01 - 0.0025))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(contrasted(x, x.detach(), near, weight, 0.01).sum(), x)
    assert (gradient > 0).all(), "a descent leads away from the negative"


def test_the_negative_is_the_student_at_the_last_multiple_of_the_lag() -> None:
    task = task_of()
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2)
    student = Student(task.backbone, task.trained, None, torch.Generator())
    measure = Margin(lag=2, delta=10.0, alpha=1.0, decay=1.0).measure(task, images)
    batch = images.noised([0, 1], torch.Generator().manual_seed(0))
    before = [float(measure(student, batch, step, torch.Generator()).detach().sum()) for step in (0, 1)]
    with torch.no_grad():
        for leaf in student.trained:
            leaf += 0.05 * draws(*leaf.shape)
    within, renewed = (float(measure(student, batch, step, torch.Generator()).detach().sum()) for step in (1, 2))
    assert before[0] == before[1]
    assert within != renewed, "at step 1 the negative is the state of step 0, at step 2 the present one"


def test_a_replacement_is_the_anchors_inside_and_the_targets_outside() -> None:
    target, anchor = draws(1, 4, 3), draws(1, 4, 3, seed=1)
    region = torch.tensor([[True, False, True, False]])
    aim = torch.where(region[..., None], anchor, target)
    assert float(replaced(aim, target, anchor, region, 0.0)) == 0.0
    half = float(replaced(target, target, anchor, region, 0.0))
    whole = float(replaced(target, target, anchor, torch.ones_like(region), 0.0))
    assert 0 < half < whole
    repelled = float(replaced(target, target, anchor, region, 0.1)) - half
    assert repelled == pytest.approx(0.1, abs=1e-5), "the cosine with itself is 1"


def test_a_deviation_is_largest_in_place_and_smallest_on_the_other_side() -> None:
    before = draws(1, 6, 5)
    mean = before.mean(1, keepdim=True)
    values = [float(deviation(mean + sign * (before - mean), before, 5.0)) for sign in (1.0, 0.001, -1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(math.log1p(math.exp(5)) / 5, abs=1e-4)
    torch.testing.assert_close(likeness(before, before), torch.ones(1, 6))


def test_main_directions_hold_the_mean_and_the_largest_spread() -> None:
    base = draws(200, 1) * torch.tensor([[0.0, 3.0, 0.0, 0.0]]) + 0.01 * draws(200, 4, seed=1)
    rows = base + torch.tensor([5.0, 0.0, 0.0, 0.0])
    basis = main_directions(rows, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2), atol=1e-5, rtol=0)
    projector = basis @ basis.T
    torch.testing.assert_close(projector, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])), atol=0.02, rtol=0)


def capsule(target: torch.Tensor, others: torch.Tensor) -> Capsule:
    return Capsule.of(target, others)


def test_a_capsule_finds_the_direction_and_takes_it_off_where_it_is_shown() -> None:
    shown = draws(100, 3) * 0.1 + torch.tensor([4.0, 0.0, 0.0])
    others = draws(100, 3, seed=1) * 0.1
    gate = capsule(shown, others)
    assert gate.direction[0] > 0.99
    assert gate.effect > 10
    after = gate.gated(torch.stack([shown, others]), alpha=-1.0, sharpness=4.0)
    assert after[0, :, 0].mean() < 1.0, "the target's part is gone for the most"
    torch.testing.assert_close(after[0, :, 1:], shown[:, 1:], atol=0.4, rtol=0)
    torch.testing.assert_close(after[1], others, atol=0.1, rtol=0)


def test_the_struck_out_aim_is_what_remains_of_the_others() -> None:
    aim = struck_out(torch.tensor([[0.5, 0.3, 0.2]]))
    torch.testing.assert_close(aim, torch.tensor([[0.0, 0.6, 0.4]]))
    torch.testing.assert_close(divergence(aim, aim.log().clamp(min=-50)), torch.zeros(1), atol=1e-5, rtol=0)
    assert float(divergence(aim, torch.zeros(1, 3))) == pytest.approx(
        math.log(3) + 0.6 * math.log(0.6) + 0.4 * math.log(0.4)
    )


def test_the_temperature_is_the_smallest_that_is_confident_enough() -> None:
    errors = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    right = torch.tensor([0, 1])
    tau = inverse_temperature(errors, right, 0.9, 1.0)
    confidence = lambda t: float((-t * errors).softmax(1)[[0, 1], right].mean())  # noqa: E731
    assert confidence(tau) >= 0.9 > confidence(tau / 2**0.5)
    hopeless = inverse_temperature(errors, torch.tensor([1, 0]), 0.9, 1.0)
    assert hopeless == pytest.approx(2**-8), "where no scale is right, the one that is least wrong"


def test_boundary_needs_neighbours_and_reads_the_target_in_the_sentence_of_an_image() -> None:
    with pytest.raises(Exception, match=r"boundary: expected a concept that preserves something, got none"):
        Boundary(images=2, image_steps=2).loss(task_of(concept=Concept(target="cat")))
    task = task_of()
    classifier = Boundary(images=2, image_steps=2)._classifier(task, CAT)
    batch = classifier.drawn(1, False, torch.Generator().manual_seed(0))
    prompts = classifier._prompts(batch.prompts[0])
    assert len(prompts) == 4
    assert "cat" in prompts[0]
    assert batch.prompts[0].named in prompts
    assert classifier.errors(batch).shape == (1, 4)


def test_forgotten_images_have_no_weight() -> None:
    task = task_of()
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2)
    batch = images.noised([0, 1, 0, 1], torch.Generator().manual_seed(0))
    student = Student(task.backbone, task.trained, None, torch.Generator())
    named = squared_errors(reference_reads(task, batch, batch.named), batch.truth)
    anchors = squared_errors(reference_reads(task, batch, batch.anchors), batch.truth)
    assert torch.equal(remembered_still(student, batch, task), (named < anchors).float())


def test_pull_adds_the_distance_to_the_anchor() -> None:
    task = task_of()
    images = NoisedImages(task.context, task.concepts, images=2, image_steps=2)
    student = Student(task.backbone, task.trained, None, torch.Generator())
    batch = images.noised([0, 1], torch.Generator().manual_seed(0))
    plain, pulled = (
        Calibrated(pull=pull).measure(task, images)(student, batch, 0, torch.Generator()).detach()
        for pull in (0.0, 2.0)
    )
    apart = squared_errors(reference_reads(task, batch, batch.named), reference_reads(task, batch, batch.anchors))
    tau = confidence_scale(task, images)
    torch.testing.assert_close(pulled - plain, 2 * tau * apart, atol=1e-3, rtol=1e-3)
