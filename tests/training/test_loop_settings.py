"""The loop with neighbours of the weights, schedules of targets, and steps without the main loss."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.erasers.tune import Tune
from erasure.errors import InputError
from erasure.progress import Progress
from erasure.training.context import FitContext, TrainingTask
from erasure.training.early_stopping import Until
from erasure.training.finetune import GradientMap, Optimisation, WeightedLoss, finetune
from erasure.training.flatness import Flat, Neighbours, leaf_gradients, scaled_to
from erasure.training.shape import Shape
from erasure.training.student import Leaf, Reset, Student
from erasure.training.terms.meta import Meta
from tests import tiny
from tests.erasers.test_duge import Sees

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CAT = Concept(target="cat", preserve=("dog", "bird"))


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of(tiny.sd1())


def only_key(name: str) -> bool:
    return name == KEY


def square(student: Student, step: int, generator: torch.Generator) -> Tensor:
    """Half the squared norm of the weight: its gradient is the weight."""
    return student.weights()[KEY].float().square().sum() / 2


def fit(backbone: Backbone, **settings: Any) -> Tensor:
    optimisation = settings.pop("optimisation", Optimisation(steps=2, lr=0.01, optimizer="adam"))
    return finetune(backbone, only_key, square, optimisation, seed=1, **settings)[KEY].delta


def test_without_pieces_an_update_is_that_of_a_plain_loop_to_the_bit(backbone: Backbone) -> None:
    leaf = backbone.parameters(only_key)[KEY].detach().clone().requires_grad_()
    start = leaf.detach().clone()
    optimizer = torch.optim.Adam([leaf], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (leaf.square().sum() / 2).backward()
        optimizer.step()
    assert torch.equal(fit(backbone), (leaf - start).detach())


def test_a_moved_student_has_the_gradient_at_the_moved_weights(backbone: Backbone) -> None:
    student = Student(backbone, only_key, None, torch.Generator())
    leaf = Leaf(KEY, "weight")
    before = student.leaves[leaf].detach().clone()
    with student.moved({leaf: torch.ones_like(before)}):
        gradient = leaf_gradients(student, square, 0, torch.Generator())[leaf]
        torch.testing.assert_close(student.shifts()[KEY], torch.ones_like(before))
    torch.testing.assert_close(gradient, before + 1)
    assert torch.equal(student.leaves[leaf], before)
    torch.testing.assert_close(leaf_gradients(student, square, 0, torch.Generator())[leaf], before)


@pytest.mark.parametrize("rank", [None, 2])
def test_neighbours_lie_at_the_radius_towards_the_relearned_model(backbone: Backbone, rank: int | None) -> None:
    student = Student(backbone, only_key, rank, torch.Generator().manual_seed(0))

    def relearning(student: Student, step: int, generator: torch.Generator) -> Tensor:
        return (student.weights()[KEY].float() - 1).square().sum()

    around = Neighbours(Flat(radius=0.1, points=1, noise=2), relearning)
    offsets = around.offsets(student, 0, torch.Generator().manual_seed(3))
    size = torch.cat([leaf.detach().flatten() for leaf in student.trained]).norm()
    for offset in offsets:
        length = torch.cat([each.flatten() for each in offset.values()]).norm()
        torch.testing.assert_close(length, 0.1 * size)
    with student.moved(offsets[0]):
        nearer = relearning(student, 0, torch.Generator())
    assert nearer < relearning(student, 0, torch.Generator())


def test_the_loss_is_the_mean_over_the_weights_and_their_neighbours(backbone: Backbone) -> None:
    """On a square, the mean gradient of w and w + d is w + d / 2."""

    class Beside(Neighbours):
        def __init__(self, keep_too: bool) -> None:
            self.keep_too = keep_too

        def offsets(self, student: Student, step: int, generator: torch.Generator) -> list[dict[Leaf, Tensor]]:
            return [{leaf: torch.ones_like(each) for leaf, each in student.leaves.items()}]

    seen: list[Tensor] = []

    def noting(step: dict[Leaf, Tensor]) -> dict[Leaf, Tensor]:
        seen.append(step[Leaf(KEY, "weight")])
        return step

    class Recording(GradientMap):
        def __call__(self, erase: Any, keep: Any, step: int) -> Any:
            gradients.append((erase[Leaf(KEY, "weight")], keep[Leaf(KEY, "weight")]))
            return erase, keep

    start = backbone.parameters(only_key)[KEY].detach()
    once = Optimisation(steps=1, lr=0.01)
    for keep_too in (False, True):
        gradients: list[tuple[Tensor, Tensor]] = []
        terms = [WeightedLoss(loss=square, weight=2.0)]
        fit(backbone, optimisation=once, near=Beside(keep_too), maps=[Recording()], terms=terms, limits=[noting])
        (erase, keep), *_ = gradients
        torch.testing.assert_close(erase, start + 0.5)
        torch.testing.assert_close(keep, 2 * (start + (0.5 if keep_too else 0.0)))
    assert len(seen) == 2


def test_only_every_third_update_erases(backbone: Backbone) -> None:
    steps: list[int] = []

    def main(student: Student, step: int, generator: torch.Generator) -> Tensor:
        steps.append(step)
        return square(student, step, generator)

    terms = [WeightedLoss(loss=square, weight=1.0)]
    finetune(backbone, only_key, main, Optimisation(steps=7, lr=0.01, every=3), terms=terms)
    assert steps == [0, 3, 6]
    with pytest.raises(InputError, match=r"finetune\.every: expected at least 1, got 0"):
        Optimisation(steps=1, lr=0.01, every=0)
    with pytest.raises(InputError, match=r"shape\.every: expected 1 without a term"):
        Tune(**{**Tune.quick, "shape": Shape(every=3)}).fit([CAT], FitContext(backbone=backbone))


def test_the_start_of_a_patch_counts_as_a_step(backbone: Backbone) -> None:
    changes = finetune(
        backbone,
        only_key,
        square,
        Optimisation(steps=1, lr=0.01, rank=2),
        limits=[lambda step: {leaf: 0 * change if leaf.part == "down" else change for leaf, change in step.items()}],
    )
    assert not changes[KEY].down.any()


@pytest.mark.parametrize(
    ("schedule", "every", "expected"),
    [
        ("cyclic", 1, [0, 1, 2] * 10),
        ("cyclic", 2, [0, 0, 1, 1, 2, 2] * 5),
        ("modular", 1, [0] * 25 + [1] * 5),
    ],
)
def test_targets_follow_the_schedule(backbone: Backbone, schedule: str, every: int, expected: list[int]) -> None:
    concepts = [Concept(target=name, preserve=("dog",)) for name in ("cat", "car", "gun")]
    task = TrainingTask(context=FitContext(backbone=backbone), requests=concepts, trained=only_key)
    seen: list[str] = []

    def loss_of(part: TrainingTask) -> Any:
        assert len(part.concepts) == 1

        def loss(student: Student, step: int, generator: torch.Generator) -> Tensor:
            seen.append(part.concepts[0].target)
            return torch.zeros(())

        return loss

    student = Student(backbone, only_key, None, torch.Generator())
    loss = Shape(schedule=schedule, every=every)._by_target(loss_of, task)
    for step in range(30):
        loss(student, step, torch.Generator())
    assert seen == [("cat", "car", "gun")[i] for i in expected]


def test_settings_that_an_eraser_cannot_follow_are_refused(backbone: Backbone) -> None:
    context = FitContext(backbone=backbone)
    with pytest.raises(InputError, match=r"shape\.schedule: expected 'joint' for an eraser that draws .* got 'cyclic'"):
        make_eraser("duge", **duge(), shape=Shape(schedule="cyclic")).fit([CAT], context)
    with pytest.raises(InputError, match=r"shape\.unforgotten: expected an objective that weighs single images"):
        Tune(**{**Tune.quick, "shape": Shape(unforgotten=True)}).fit([CAT], context)
    with pytest.raises(InputError, match=r"schedule: expected 'joint', 'cyclic' or 'modular', got 'often'"):
        Shape(schedule="often")
    with pytest.raises(InputError, match=r"flat\.radius: expected a number greater than 0"):
        Shape(flat=Flat(radius=0.0))


def duge() -> dict[str, Any]:
    from erasure.erasers.duge import DUGE

    return dict(DUGE.quick)


def test_the_loop_settings_train_and_are_settings_of_the_edit(backbone: Backbone) -> None:
    concepts = [CAT, Concept(target="gun", preserve=("bird",))]
    shape = Shape(
        keep={"semantic-noise": 1.0},
        flat=Flat(noise=1, images=1, image_steps=2),
        schedule="cyclic",
        unforgotten=True,
        every=2,
    )
    objective = {"name": "calibrated", "images": 2, "image_steps": 2}
    eraser = make_eraser("tune", objective=objective, shape=shape, steps=2, lr=1e-3)
    assert make_eraser("tune", **eraser.as_settings()) == eraser
    edit = eraser.fit(concepts, FitContext(backbone=backbone))
    again = eraser.fit(concepts, FitContext(backbone=backbone))
    assert edit.metadata.settings["shape"]["flat"]["noise"] == 1
    assert any(change.delta.any() for change in edit.changes.values())
    assert all(torch.equal(change.delta, again.changes[name].delta) for name, change in edit.changes.items())


@pytest.mark.parametrize(("shown", "expected"), [(False, 2), (True, 5)])
def test_a_training_ends_when_the_judge_sees_the_target_no_more(backbone: Backbone, shown: bool, expected: int) -> None:
    steps: list[Progress] = []
    context = FitContext(backbone=backbone, judge=Sees(lambda images: [shown] * len(images)), on_progress=steps.append)
    until = Until(images=2, every=2, image_steps=2)
    Tune(**{**Tune.quick, "steps": 5, "shape": Shape(until=until)}).fit([CAT], context)
    assert sum(progress.stage == "fit" for progress in steps) == expected


@pytest.mark.parametrize(("drawn", "expected"), [("dog", 2), ("", 5)])
def test_a_training_that_looks_at_what_stays_goes_on_until_it_is_drawn(
    backbone: Backbone, drawn: str, expected: int
) -> None:
    class SeesOne(Sees):
        def knows(self, concept: str) -> bool:
            return concept in ("cat", "dog")

        def shows(self, images: Any, concept: str) -> list[bool]:
            return [concept == drawn] * len(images)

    steps: list[Progress] = []
    context = FitContext(backbone=backbone, judge=SeesOne(list), on_progress=steps.append)
    until = Until(images=2, every=2, image_steps=2, kept=0.9)
    Tune(**{**Tune.quick, "steps": 5, "shape": Shape(until=until)}).fit([CAT], context)
    assert sum(progress.stage == "fit" for progress in steps) == expected


def test_what_the_judge_does_not_know_cannot_be_looked_at(backbone: Backbone) -> None:
    class SeesNone(Sees):
        def knows(self, concept: str) -> bool:
            return False

    eraser = Tune(**{**Tune.quick, "shape": Shape(until=Until(kept=0.9))})
    with pytest.raises(InputError, match=r"shape\.until\.kept: expected preserved names that the judge knows"):
        eraser.fit([CAT], FitContext(backbone=backbone, judge=SeesNone(list)))


def test_a_reset_blends_each_weight_with_noise_of_its_own_size() -> None:
    weight = 0.02 * torch.randn(300, 400, generator=torch.Generator().manual_seed(3)) + 0.05
    offset = Reset(share=0.4).offset(weight, torch.Generator().manual_seed(0))
    noise = (offset + 0.4 * weight) / 0.4
    assert float(noise.mean()) == pytest.approx(0, abs=1e-3)
    assert float(noise.std()) == pytest.approx(0.02, rel=0.01)
    assert not Reset(share=0.4).offset(torch.ones(5), torch.Generator()).any()


def test_a_training_starts_at_the_reset_and_moves_as_it_would_from_there(backbone: Backbone) -> None:
    weight = backbone.parameters(only_key)[KEY].detach()
    start = torch.full_like(weight, 0.5)
    nothing = Optimisation(steps=0, lr=0.01, optimizer="adam")
    torch.testing.assert_close(fit(backbone, start=lambda *_: start, optimisation=nothing), start)
    one = Optimisation(steps=1, lr=0.01, optimizer="adam")
    moved = fit(backbone, start=lambda *_: start, optimisation=one)
    torch.testing.assert_close(moved, start - 0.01 * (weight + start).sign(), rtol=1e-4, atol=1e-6)
    assert torch.equal(backbone.parameters(only_key)[KEY], weight)


def test_limits_of_the_step_hold_for_the_reset(backbone: Backbone) -> None:
    inside = torch.zeros_like(backbone.parameters(only_key)[KEY])
    inside[0] = 1.0
    start = torch.ones_like(inside)
    moved = fit(
        backbone, start=lambda *_: start, limits=[lambda step: {key: each * inside for key, each in step.items()}]
    )
    assert not moved[1:].any()
    assert (moved[0] - 1).abs().max() < 0.05


def test_a_reset_is_refused_for_patches(backbone: Backbone) -> None:
    eraser = Tune(**{**Tune.quick, "rank": 2, "shape": Shape(reset=Reset())})
    with pytest.raises(InputError, match=r"shape\.reset: expected whole weights to train, got patches"):
        eraser.fit([CAT], FitContext(backbone=backbone))


def test_a_reset_by_name_reaches_the_edit(backbone: Backbone) -> None:
    eraser = make_eraser("tune", **{**Tune.quick, "steps": 0, "shape": {"reset": {"share": 0.2}}})
    assert make_eraser("tune", **eraser.as_settings()) == eraser
    edit, again = (eraser.fit([CAT], FitContext(backbone=backbone)) for _ in range(2))
    weights = backbone.parameters(edit.changes.__contains__)
    for name, change in edit.changes.items():
        assert torch.equal(change.delta, again.changes[name].delta)
        expected = 0.2 * 2**0.5 if weights[name].ndim > 1 and weights[name].detach().std() else 0.0
        spread = float(weights[name].detach().float().std(correction=0)) or 1.0
        assert float(change.delta.std(correction=0)) / spread == pytest.approx(expected, rel=0.2)


def test_meta_has_the_erasing_gradient_after_the_relearners_steps(backbone: Backbone) -> None:
    task = TrainingTask(context=FitContext(backbone=backbone), requests=[CAT], trained=only_key)
    student = Student(backbone, only_key, None, torch.Generator())
    leaf = Leaf(KEY, "weight")
    size = float(student.leaves[leaf].detach().norm())

    def relearning(student: Student, step: int, generator: torch.Generator) -> Tensor:
        return student.weights()[KEY].float().sum()

    offsets = Meta(inner_steps=3, radius=0.02).relearned(student, relearning, 0, torch.Generator())
    step = scaled_to({leaf: torch.ones_like(offsets[leaf])}, 0.02 * size)[leaf]
    torch.testing.assert_close(offsets[leaf], -3 * step)
    plain, meta = (Meta(inner_steps=steps, images=1, image_steps=2).loss(task) for steps in (0, 2))
    values = [loss(student, 0, torch.Generator().manual_seed(1)) for loss in (plain, meta)]
    gradients = [torch.autograd.grad(value, student.leaves[leaf])[0] for value in values]
    assert torch.isfinite(values[1])
    assert gradients[0].any()
    assert not torch.equal(*gradients)


def test_maps_see_an_erasing_term_with_the_main_loss(backbone: Backbone) -> None:
    class Recording(GradientMap):
        def __call__(self, erase: Any, keep: Any, step: int) -> Any:
            gradients.append((erase[Leaf(KEY, "weight")], keep[Leaf(KEY, "weight")]))
            return erase, keep

    gradients: list[tuple[Tensor, Tensor]] = []
    terms = [WeightedLoss(loss=square, weight=3.0), WeightedLoss(loss=square, weight=5.0, erases=True)]
    fit(backbone, optimisation=Optimisation(steps=1, lr=0.01), terms=terms, maps=[Recording()])
    start = backbone.parameters(only_key)[KEY].detach()
    torch.testing.assert_close(gradients[0][0], 6 * start)
    torch.testing.assert_close(gradients[0][1], 3 * start)
