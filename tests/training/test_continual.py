"""Pieces for removals in sequence: L1/L2-SP, selective fine-tuning, projection of steps, and the TIES merge."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import DenseChange, EditMetadata, LowRankChange, WeightEdit, ties
from erasure.edits.changes import exchanged
from erasure.edits.ties import merged
from erasure.errors import InputError
from erasure.training.context import FitContext, History, TrainingTask
from erasure.training.finetune import Gradient, Optimisation
from erasure.training.objectives.guided import Guided
from erasure.training.selectors.gradient import GradientSaliency
from erasure.training.shape import Shape
from erasure.training.student import Leaf, Student
from erasure.training.terms.starting_point import StartingPoint
from erasure.training.transforms.text_projection import TextProjection
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1())
CAT = Concept(target="cat", preserve=("dog", "bird"))
KEYS = BACKBONE.sites(("cross.k", "cross.v"))
CONTEXT = FitContext(backbone=BACKBONE, history=History(targets=(Concept(target="gun"),)))
TASK = TrainingTask(context=CONTEXT, requests=[CAT], trained=KEYS.__contains__)


def moved_student(amount: float) -> Student:
    student = Student(BACKBONE, KEYS.__contains__, None, torch.Generator())
    with torch.no_grad():
        for leaf in student.trained:
            leaf += amount
    return student


def value(term: StartingPoint, student: Student, task: TrainingTask = TASK) -> Tensor:
    return term.loss(task)(student, 0, torch.Generator())


@pytest.mark.parametrize(("form", "expected"), [("l2", 0.25), ("l1", 0.5)])
def test_the_distance_from_the_start_is_a_mean_over_scalars(form: Any, expected: float) -> None:
    term = StartingPoint(form=form)
    student = moved_student(0.0)
    start = value(term, student)
    assert float(start.detach()) == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(start, student.trained))
    assert float(value(term, moved_student(0.5)).detach()) == pytest.approx(expected, rel=1e-4)
    assert term.weight == {"l2": 25_000.0, "l1": 50.0}[form]


def test_it_is_from_this_removals_start_unless_the_reference_is_asked_for() -> None:
    keys = BACKBONE.parameters(KEYS.__contains__)
    original = {name: weight.detach() - 0.5 for name, weight in keys.items()}
    task = replace(TASK, reference=lambda: exchanged(keys, original))
    student = moved_student(0.0)
    assert float(value(StartingPoint(), student, task).detach()) == 0
    assert float(value(StartingPoint(towards="reference"), student, task).detach()) == pytest.approx(0.25, rel=1e-4)


def test_a_heavy_penalty_holds_a_training() -> None:
    loss = Guided(sample_steps=3).loss(TASK)
    free, held = (
        Shape(keep=keep).train(TASK, loss, Optimisation(steps=4, lr=1e-3))
        for keep in ({}, {"starting-point": {"form": "l1", "weight": 1e9}})
    )
    lengths = [sum(float(change.delta.norm()) ** 2 for change in each.values()) for each in (free, held)]
    assert lengths[1] < 0.5 * lengths[0]


def trained(transform: TextProjection, **settings: Any) -> Any:
    loss = Guided(sample_steps=3).loss(TASK)
    optimisation = Optimisation(steps=3, lr=1e-2, **settings)
    return Shape(gradients=(transform,)).train(TASK, loss, optimisation)


def leak(changes: Any, states: Tensor) -> float:
    """Return the largest share of a change that protected states see."""
    deltas = [change.of(BACKBONE.parameters({name}.__contains__)[name].detach()) for name, change in changes.items()]
    unit = states / states.norm(dim=1, keepdim=True)
    return max(float((delta.double() @ unit.T).norm() / delta.norm()) for delta in deltas if delta.ndim > 1)


def test_projected_steps_leave_protected_states_alone_and_projected_gradients_do_not() -> None:
    exact, published = TextProjection(), TextProjection(on="gradient")
    states = exact.protected(TASK)
    assert len(states) == 3, "preserved names and the earlier target"
    assert len(replace(exact, earlier=False).protected(TASK)) == 2
    assert leak(trained(exact, weight_decay=0.1), states) < 1e-2
    assert leak(trained(exact, rank=2), states) < 1e-2
    assert leak(trained(published), states) > 0.05


def test_the_projector_is_idempotent_and_freezes_a_layer_whose_whole_space_is_protected() -> None:
    states = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projector = TextProjection(floor=1e-12, relative=0.0).projector(states)
    torch.testing.assert_close(projector @ projector, projector, atol=1e-8, rtol=0)
    torch.testing.assert_close(states @ projector, torch.zeros_like(states), atol=1e-8, rtol=0)
    whole = TextProjection(floor=1e-12, relative=0.0).projector(torch.eye(6, dtype=torch.float64))
    assert whole.norm() < 1e-10


def test_a_projection_without_names_or_readers_says_so() -> None:
    lone = replace(TASK, context=FitContext(backbone=BACKBONE), requests=[Concept(target="cat")])
    with pytest.raises(InputError, match="text-projection: expected preserved names or earlier targets"):
        TextProjection().limiting(lone)
    queries = replace(TASK, trained=BACKBONE.sites(("cross.q",)).__contains__)
    with pytest.raises(InputError, match="text-projection: expected trained layers that read the text's states"):
        TextProjection().limiting(queries)


def test_selective_fine_tuning_trains_the_stated_share_and_no_weight_of_zero() -> None:
    name = next(name for name in KEYS if name.endswith("to_k.weight"))
    weight = BACKBONE.parameters({name}.__contains__)[name]
    zeroed = weight.detach().clone()
    zeroed[0] = 0
    selector = GradientSaliency(kind="weight-entry", share=0.1, alpha=0.0, batches=1, images=2, image_steps=2)
    with exchanged({name: weight}, {name: zeroed}):
        masks = selector.selected(TASK).masks
        matrices = [p for p in BACKBONE.parameters(KEYS.__contains__).values() if p.ndim > 1]
        assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * sum(p.numel() for p in matrices))
        assert name not in masks or not masks[name][0].any()
        changes = Shape(sites=selector).train(TASK, Guided(sample_steps=3), Optimisation(steps=2, lr=1e-3))
    for each, change in changes.items():
        outside = 1 - masks[each]
        assert not (change.delta * outside).any()


def edit_of(fill: Callable[[str, torch.Size], Tensor], rank: bool = False) -> WeightEdit:
    metadata = EditMetadata.of("esd", {}, BACKBONE, [CAT], 0)
    changes: dict[str, Any] = {}
    for name, weight in BACKBONE.parameters({n for n in KEYS if n.endswith("to_k.weight")}.__contains__).items():
        delta = fill(name, weight.shape)
        changes[name] = LowRankChange(up=delta[:, :1], down=delta[:1]) if rank else DenseChange(delta=delta)
    return WeightEdit(changes=changes, metadata=metadata)


def random_edit(seed: int, rank: bool = False) -> WeightEdit:
    generator = torch.Generator().manual_seed(seed)
    return edit_of(lambda _, shape: torch.randn(shape, generator=generator), rank)


def deltas(edit: WeightEdit) -> dict[str, Tensor]:
    weights = BACKBONE.parameters(edit.changes.__contains__)
    return {name: change.of(weights[name].detach()).float() for name, change in edit.changes.items()}


def same(one: WeightEdit, other: WeightEdit) -> bool:
    return all(torch.allclose(delta, deltas(other)[name], atol=1e-6) for name, delta in deltas(one).items())


@pytest.mark.parametrize("rank", [False, True])
def test_a_merge_of_one_edit_or_of_equal_ones_is_that_edit(rank: bool) -> None:
    edit = random_edit(0, rank)
    assert same(ties([edit], BACKBONE.pipe, keep=1.0), edit)
    assert same(ties([edit, edit, edit], BACKBONE.pipe, keep=1.0), edit)
    doubled = deltas(ties([edit], BACKBONE.pipe, keep=1.0, scale=2.0))
    assert all(torch.allclose(doubled[name], 2 * delta, atol=1e-5) for name, delta in deltas(edit).items())


def test_the_order_of_a_merge_does_not_matter() -> None:
    edits = [random_edit(seed) for seed in range(3)]
    assert same(ties(edits, BACKBONE.pipe), ties(edits[::-1], BACKBONE.pipe))


def test_opposites_elect_one_of_them_and_disjoint_supports_add_without_halving() -> None:
    delta = torch.tensor([[3.0, -2.0], [1.0, 0.5]])
    opposite = merged(torch.stack([delta, -delta]), 1.0)
    torch.testing.assert_close(opposite, delta.abs())
    apart = merged(torch.tensor([[4.0, 0.0, 0.1, 0.0], [0.0, -5.0, 0.0, 0.1]]), 0.25)
    assert apart.tolist() == [4.0, -5.0, 0.0, 0.0]
    assert merged(torch.tensor([[1.0, 4.0], [-3.0, 2.0]]), 1.0).tolist() == [-3.0, 3.0]


def test_a_merge_of_nothing_or_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"ties\.edits: expected at least one"):
        ties([], BACKBONE.pipe)
    for settings, message in (({"keep": 0.0}, r"ties\.keep"), ({"scale": -1.0}, r"ties\.scale")):
        with pytest.raises(InputError, match=message):
            ties([random_edit(0)], BACKBONE.pipe, **settings)


def test_a_projected_step_of_a_patch_is_projected_on_its_right_factor() -> None:
    inside = TextProjection().limiting(TASK)
    assert inside is not None
    name = next(name for name in KEYS if name.endswith("to_k.weight"))
    width = BACKBONE.parameters({name}.__contains__)[name].shape[1]
    step: Gradient = {Leaf(name, "up"): torch.ones(4, 2), Leaf(name, "down"): torch.ones(2, width)}
    limited = inside(step)
    assert torch.equal(limited[Leaf(name, "up")], step[Leaf(name, "up")])
    assert not torch.equal(limited[Leaf(name, "down")], step[Leaf(name, "down")])
