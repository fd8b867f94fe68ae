"""Receler: patches that fold into the weights, locality, the vectors inside the prompt."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import LowRankChange
from erasure.erasers import make_eraser
from erasure.erasers.receler import Receler, _with_inputs
from erasure.sampling import scheduled_prediction
from erasure.training.context import FitContext, TrainingTask
from erasure.training.finetune import Loss
from erasure.training.inner_attack import RunningAttack, VectorAttack, inserted
from erasure.training.objectives.guided import Guided
from erasure.training.student import Student
from erasure.training.word_attention.locality import Locality, written_outside
from tests import tiny

CAT = Concept(target="cat")
BACKBONE: Any = backbone_of(tiny.sd1())
NO_ATTACK = VectorAttack(vectors=0)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task() -> TrainingTask:
    trained = BACKBONE.sites(("cross.out",)).__contains__
    return TrainingTask(context=FitContext(backbone=BACKBONE), requests=[CAT], trained=trained)


def student_of(up: float = 0.0) -> Student:
    student = Student(BACKBONE, task().trained, 2, draws(1))
    with torch.no_grad():
        for leaf, tensor in student.leaves.items():
            if leaf.part == "up":
                tensor += up * torch.randn(tensor.shape, generator=draws(2))
    return student


def gradients(loss: Loss, student: Student) -> list[torch.Tensor | None]:
    return list(student(torch.autograd.grad, loss(student, 0, draws()), student.trained, allow_unused=True))


def test_a_patch_that_is_zero_adds_nothing_and_moves_by_its_left_factor_alone() -> None:
    student = student_of()
    loss = Receler(sample_steps=3, attack=NO_ATTACK).loss(task())
    for leaf, gradient in zip(student.leaves, gradients(loss, student), strict=True):
        assert gradient is not None
        assert gradient.any() == (leaf.part == "up")
    x = torch.randn(1, 4, 8, 8, generator=draws())
    read = BACKBONE.encode(["cat"])
    _, inputs = student(_with_inputs, BACKBONE, x, torch.tensor(500), read, list(student.shifts()))
    nowhere = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert not written_outside(inputs, student.shifts(), nowhere).any()


def test_without_vectors_and_locality_it_is_esd_on_the_output_projections() -> None:
    student = student_of(0.1)
    settings: dict[str, Any] = {"negative_guidance": 0.0, "sample_steps": 3}
    plain = Receler(**settings, locality=0.0, attack=NO_ATTACK).loss(task())
    esd = Guided(**settings).loss(task())
    torch.testing.assert_close(plain(student, 0, draws()), esd(student, 0, draws()))


def test_what_is_written_inside_the_region_does_not_count() -> None:
    inputs = {"a": torch.randn(1, 16, 3, generator=draws())}
    shifts = {"a": torch.randn(5, 3, generator=draws(1))}
    added = inputs["a"] @ shifts["a"].T
    nowhere, everywhere = torch.zeros(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(written_outside(inputs, shifts, nowhere), added.square().mean())
    assert not written_outside(inputs, shifts, everywhere).any()
    half = nowhere.clone()
    half[:, :2] = True
    value = written_outside(inputs, shifts, half)
    torch.testing.assert_close(value, added[:, 8:].square().mean())
    other = {"a": torch.cat([inputs["a"][:, :8] * 9, inputs["a"][:, 8:]], dim=1)}
    assert torch.equal(written_outside(other, shifts, half), value)


def test_a_region_is_what_attends_to_the_word_at_the_size_that_is_nearest() -> None:
    latents, read = torch.randn(2, 4, 8, 8, generator=draws()), BACKBONE.encode(["cat", "a cat"])
    words = [read.word_positions(row, "cat") for row in range(2)]
    masks = {t: Locality.of(BACKBONE, 64, t).masks(latents, torch.tensor(500), read, words) for t in (0.0, 0.5, 1.0)}
    assert masks[0.5].shape == (2, 8, 8)
    assert masks[0.0].all()
    assert (masks[1.0].flatten(1).sum(1) >= 1).all()
    assert masks[0.5].sum() < masks[0.0].sum()
    assert not (masks[1.0] & ~masks[0.5]).any()
    assert Locality.of(BACKBONE, 1, 0.1).masks(latents, torch.tensor(500), read, words).shape[1] < 8


def test_vectors_undo_the_erasure_and_leave_the_patches() -> None:
    student = student_of(0.3)
    before = [leaf.detach().clone() for leaf in student.trained]
    x, read, t = torch.randn(1, 4, 8, 8, generator=draws()), BACKBONE.encode(["cat"]), torch.tensor(600)
    bound = scheduled_prediction(BACKBONE, x, t, read).detach()

    def undone(vectors: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(student(scheduled_prediction, BACKBONE, x, t, inserted(read, vectors, [2])), bound)

    attack = VectorAttack(vectors=4, updates=12, lr=0.1)
    start = attack.begun(read.states.flatten(0, 1), draws()).vectors.detach()
    vectors = RunningAttack(attack, read.states.flatten(0, 1)).moved(undone, draws())
    with torch.no_grad():
        assert undone(vectors) < 0.9 * undone(start)
        same = scheduled_prediction(BACKBONE, x, t, inserted(read, vectors[:0], [2]))
    assert not F.mse_loss(same, bound).any(), "with no patch and no vectors there is nothing to undo"
    assert all(torch.equal(leaf, old) for leaf, old in zip(student.trained, before, strict=True))


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_the_edit_folds_into_the_output_projections(family: str) -> None:
    backbone: Any = backbone_of(tiny.EVERY[family]())
    edit = make_eraser("receler", **{**Receler.quick, "steps": 1}).fit([CAT], FitContext(backbone=backbone))
    roles = {backbone.sites()[name].role for name in edit.changes}
    assert roles <= {"cross.out", "joint.out"}
    assert all(isinstance(change, LowRankChange) and change.up.shape[1] == 2 for change in edit.changes.values())
