"""Contract of objectives, terms, transforms, selectors and finishes: a file of a seam is held to it by being there."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.edits.changes import exchanged
from erasure.edits.finish import FINISHES
from erasure.erasers import make_eraser
from erasure.erasers.tune import Tune
from erasure.registry import Registry
from erasure.training.context import FitContext, TrainingTask
from erasure.training.finetune import GradientMap, Optimisation, finetune
from erasure.training.objectives import OBJECTIVES
from erasure.training.selectors import SELECTORS
from erasure.training.shape import Shape
from erasure.training.student import Leaf, Student
from erasure.training.terms import TERMS
from erasure.training.transforms import TRANSFORMS
from tests import pieces, tiny

CAT = Concept(target="cat", preserve=("dog", "bird"))
QUICK = Tune(**{**Tune.quick, "steps": 2, "lr": 1e-3})
# InfoNCE has a floor above 0; a hinge sees only heads that look more at the erased words.
REFERENCE_IS_LEAST: dict[str, dict[str, Any]] = {
    "relations": {"contrast": 0.0},
    "drift": {"hinge": False},
    "starting-point": {"towards": "reference"},
}
# Maps of attention mean something in a trained model alone; text encoders are not trained here.
PRESERVING = [
    name
    for name, kind in TERMS.classes().items()
    if not kind.erases and kind.reads != "encoder" and name != "attention"
]
SEAMS = (OBJECTIVES, TERMS, TRANSFORMS, SELECTORS, FINISHES)


@pytest.fixture
def backbone() -> Backbone:
    return backbone_of(tiny.sd1())


def task_of(backbone: Backbone) -> TrainingTask:
    sites = backbone.sites(("cross",))
    return TrainingTask(context=FitContext(backbone=backbone), requests=[CAT], trained=sites.__contains__)


def deltas(edit: WeightEdit, backbone: Backbone) -> dict[str, torch.Tensor]:
    weights = backbone.parameters(edit.changes.__contains__)
    return {name: change.of(weights[name].detach()) for name, change in edit.changes.items()}


def gradients(seed: int) -> dict[Leaf, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = {Leaf("a", "weight"): (3, 4), Leaf("b", "weight"): (5,), Leaf("c", "up"): (2, 2)}
    return {leaf: torch.randn(shape, generator=draws) for leaf, shape in shapes.items()}


def inner(one: Any, other: Any) -> float:
    return float(sum((one[leaf] * other[leaf]).sum() for leaf in one))


@pytest.mark.parametrize(("seam", "name"), [(seam, name) for seam in SEAMS for name in seam.names()])
def test_a_piece_documents_itself_and_checks_its_settings(seam: Registry[Any], name: str) -> None:
    pieces.check(seam.get(name))


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_an_objective_is_finite_and_has_a_gradient(name: str, backbone: Backbone) -> None:
    task = task_of(backbone)
    kind = OBJECTIVES.get(name)
    loss = kind(**kind.quick).loss(task)
    student = Student(backbone, task.trained, None, torch.Generator())
    value = loss(student, 0, torch.Generator().manual_seed(0))
    found = student(torch.autograd.grad, value, student.trained, allow_unused=True)
    assert torch.isfinite(value)
    assert any(gradient is not None and gradient.any() for gradient in found)


@pytest.mark.parametrize("name", OBJECTIVES.names())
def test_training_on_an_objective_lowers_it_and_repeats_to_the_bit(name: str, backbone: Backbone) -> None:
    kind = OBJECTIVES.get(name)
    task = replace(task_of(backbone), batch_size=2)
    before = {key: p.detach().clone() for key, p in backbone.parameters(lambda _: True).items()}
    random = torch.random.get_rng_state()
    fit, repeated, further = (
        finetune(backbone, task.trained, kind(**kind.quick).loss(task), Optimisation(steps=steps, lr=2e-4), seed=3)
        for steps in (1, 1, 10)
    )
    assert all(torch.equal(fit[key].delta, repeated[key].delta) for key in fit)
    assert all(torch.equal(before[key], p) for key, p in backbone.parameters(lambda _: True).items())
    assert torch.equal(random, torch.random.get_rng_state())
    student = Student(backbone, task.trained, None, torch.Generator())

    def mean() -> float:
        loss = kind(**kind.quick).loss(task)  # anew: an inner attack gets stronger from call to call
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            return sum(float(loss(student, step, draws)) for step in range(6))

    start = mean()
    with torch.no_grad():
        for leaf, tensor in student.leaves.items():
            tensor += further[leaf.name].delta
    assert mean() < start


@pytest.mark.parametrize("name", PRESERVING)
def test_a_term_is_at_its_least_at_the_reference_and_brings_a_disturbed_model_back(
    name: str, backbone: Backbone
) -> None:
    kind = TERMS.get(name)
    task = task_of(backbone)
    keys = backbone.parameters(backbone.sites(("cross.k", "cross.v")).__contains__)
    draws = torch.Generator().manual_seed(1)
    original = {key: p.detach().clone() for key, p in keys.items()}
    harmed = {
        key: weight + 0.5 * weight.std() * torch.randn(weight.shape, generator=draws) if weight.ndim > 1 else weight
        for key, weight in original.items()
    }
    task = replace(task, trained=keys.__contains__, reference=lambda: exchanged(keys, original))
    loss = kind(**{**kind.quick, **REFERENCE_IS_LEAST.get(name, {})}).loss(task)

    def mean(weights: dict[str, torch.Tensor]) -> float:
        generator = torch.Generator().manual_seed(2)
        with exchanged(keys, weights), torch.no_grad():
            student = Student(backbone, task.trained, None, torch.Generator())
            return sum(float(loss(student, 0, generator)) for _ in range(4)) / 4

    least, disturbed = mean(original), mean(harmed)
    assert least == pytest.approx(0.0, abs=1e-5)
    assert disturbed > least
    with exchanged(keys, harmed):
        changes = finetune(backbone, task.trained, loss, Optimisation(steps=20, lr=3e-3), seed=4)
    after = mean({key: harmed[key] + changes[key].of(harmed[key]).float() for key in harmed})
    assert after < disturbed


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_a_map_is_homogeneous_keeps_shapes_and_leaves_an_unopposed_gradient(name: str, backbone: Backbone) -> None:
    kind = TRANSFORMS.get(name)
    transform, (erase, keep) = kind(**kind.quick), (gradients(0), gradients(1))
    prepared = [transform.prepared(task_of(backbone)) for _ in range(4)]
    if prepared[0] is None:
        pytest.skip("the transform has no map of gradients")
    plain, scaled, zero, opposed = [each for each in prepared if each is not None]
    once, twice = (
        each({leaf: s * g for leaf, g in erase.items()}, {leaf: s * g for leaf, g in keep.items()}, 0)[0]
        for each, s in ((plain, 1.0), (scaled, 4.0))
    )
    assert {leaf: g.shape for leaf, g in once.items()} == {leaf: g.shape for leaf, g in erase.items()}
    for leaf, gradient in once.items():
        torch.testing.assert_close(4 * gradient, twice[leaf])
    nothing = {leaf: torch.zeros_like(gradient) for leaf, gradient in keep.items()}
    assert all(torch.equal(g, erase[leaf]) for leaf, g in zero(erase, nothing, 0)[0].items())
    if transform.protects:
        against = {leaf: g - 3 * erase[leaf] for leaf, g in keep.items()}
        corrected, kept = opposed(erase, against, 0)
        assert inner(corrected, kept) >= min(0.0, inner(erase, against)) - 1e-4


def test_the_opposing_part_of_a_gradient_is_projected_out() -> None:
    leaf = Leaf("a", "weight")
    project = TRANSFORMS.make("conflict").prepared(task_of(backbone_of(tiny.sd1())))
    assert project is not None
    erase, keep = {leaf: torch.tensor([1.0, -1.0])}, {leaf: torch.tensor([0.0, 2.0])}
    torch.testing.assert_close(project(erase, keep, 0)[0][leaf], torch.tensor([1.0, 0.0]))
    assert project.note() == "conflict: cos -0.71, 100% of steps projected"


class Unchanged(GradientMap):
    def __call__(self, erase: Any, keep: Any, step: int) -> Any:
        return erase, keep


def test_a_map_that_changes_nothing_and_limits_of_one_train_the_same(backbone: Backbone) -> None:
    task = task_of(backbone)
    fits = []
    for maps, limits in (((), ()), ((Unchanged(),), (dict,))):
        loss = OBJECTIVES.make("guided", sample_steps=3).loss(task)
        fits.append(
            finetune(backbone, task.trained, loss, Optimisation(steps=3, lr=1e-3), maps=maps, limits=limits, seed=2)
        )
    for name, change in fits[0].items():
        torch.testing.assert_close(change.delta, fits[1][name].delta, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SELECTORS.names())
def test_a_selection_is_a_part_of_the_trained_weights_and_the_edit_stays_inside(name: str, backbone: Backbone) -> None:
    kind = SELECTORS.get(name)
    selector, objective = kind(**kind.quick), QUICK.objective
    task = replace(task_of(backbone), trained=backbone.sites().__contains__)
    if kind.of_encoder:
        task = replace(task, trained=lambda name: name.startswith("text_encoder."))
        objective = OBJECTIVES.make("calibrated", **OBJECTIVES.get("calibrated").quick)
    selection = selector.selected(task)
    assert selection.names
    assert selection.names <= set(backbone.parameters(task.trained))
    edit = replace(QUICK, objective=objective, shape=Shape(sites=selector)).fit([CAT], task.context)
    assert set(edit.changes) <= selection.names
    assert any(delta.any() for delta in deltas(edit, backbone).values())
    for key, delta in deltas(edit, backbone).items():
        assert key not in selection.masks or not delta[(selection.masks[key] == 0).expand_as(delta)].any()


def test_only_the_selected_roles_are_trained(backbone: Backbone) -> None:
    shape = Shape(sites=SELECTORS.make("roles", roles=["cross.k"]))
    edit = make_eraser("esd", steps=1, sample_steps=2, lr=1e-3, shape=shape).fit([CAT], FitContext(backbone=backbone))
    assert set(edit.changes) == set(backbone.sites(("cross.k",)))


@pytest.mark.parametrize("name", FINISHES.names())
def test_a_finish_saves_and_drops_rows_that_its_edit_no_longer_solves(name: str, backbone: Backbone, tmp_path) -> None:
    edit = make_eraser("uce").fit([CAT], FitContext(backbone=backbone))
    finished = FINISHES.get(name)(**FINISHES.get(name).quick).applied(edit, backbone)
    before, after = deltas(edit, backbone), deltas(finished, backbone)
    same = all(torch.equal(before[key], after[key]) for key in before)
    assert (finished.rows is not None) == same
    assert finished.metadata.base_fingerprint == edit.metadata.base_fingerprint
    loaded = deltas(WeightEdit.load(finished.save(tmp_path / "edit.safetensors")), backbone)
    assert all(torch.equal(value, loaded[key]) for key, value in after.items())


def test_extrapolation_goes_on_and_is_neutral_at_zero(backbone: Backbone) -> None:
    edit = replace(QUICK, steps=1).fit([CAT], FitContext(backbone=backbone))
    assert FINISHES.make("extrapolate", factor=0.0).applied(edit, backbone) is edit
    further = deltas(FINISHES.make("extrapolate", factor=0.5).applied(edit, backbone), backbone)
    for key, delta in deltas(edit, backbone).items():
        torch.testing.assert_close(further[key], 1.5 * delta)


def test_the_pieces_are_settings_of_the_edit_and_can_be_read_again(backbone: Backbone) -> None:
    shape = Shape(
        keep={"semantic-noise": 1.0},
        gradients=(TRANSFORMS.make("conflict"),),
        finish=(FINISHES.make("extrapolate", factor=0.1),),
    )
    eraser = replace(QUICK, shape=shape)
    assert make_eraser("tune", **eraser.as_settings()) == eraser
    reports: list[Any] = []
    edit = eraser.fit([CAT], FitContext(backbone=backbone, on_progress=reports.append))
    assert edit.metadata.settings["shape"]["gradients"] == [{"name": "conflict", "per": "all"}]
    assert reports[-1].note.startswith("conflict: cos")


def alone(seam: Registry[Any], name: str) -> dict[str, Any]:
    """Return the settings of `tune` that switch on one piece."""
    kind = seam.get(name)
    if seam is OBJECTIVES:
        return {"objective": kind(**kind.quick)}
    keep = {"semantic-noise": 1.0} if seam is TRANSFORMS else {}
    if seam is TERMS:
        return {"shape": Shape(keep={name: {"weight": 1.0, **kind.quick}})}
    field, piece = {SELECTORS: "sites", TRANSFORMS: "gradients", FINISHES: "finish"}[seam], kind(**kind.quick)
    return {"shape": Shape(keep=keep, **{field: piece if seam is SELECTORS else (piece,)})}


# Each piece on one further family; those of text encoders and of keys and values have no counterpart everywhere.
SWEEP = [
    (seam, name, ("sd2", "sdxl", "sd3", "flux")[i % 4])
    for i, (seam, name) in enumerate((seam, name) for seam in SEAMS for name in seam.names())
    if name not in ("semantic-text", "cka")
]


@pytest.mark.parametrize(("seam", "name", "family"), SWEEP, ids=lambda value: getattr(value, "noun", value))
def test_each_piece_alone_trains_another_family(seam: Registry[Any], name: str, family: str) -> None:
    if name in ("semantic-kv", "direction", "attention", "text-projection"):
        family = "sdxl"
    backbone = backbone_of(tiny.EVERY[family]())
    cat = replace(CAT, aliases=("kitten",))
    edit = Tune(**{**Tune.quick, "steps": 2, **alone(seam, name)}).fit([cat], FitContext(backbone=backbone))
    assert any(delta.any() for delta in deltas(edit, backbone).values())


def test_pieces_share_one_graph_and_one_pool_of_the_reference(backbone: Backbone) -> None:
    task = task_of(backbone)
    assert set(task.graph.names) == {"cat", "dog", "bird"}
    assert task.graph is task.graph
    assert task.pool is task.pool
    again = task_of(backbone).pool
    assert torch.equal(task.pool.latents, again.latents)
    assert len(again) == len(again.timesteps) == len(again.conditioning)
