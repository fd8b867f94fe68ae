"""Terms that keep what stands beside the concept."""

from contextlib import nullcontext
from math import e, log
from typing import Any

import pytest
import torch

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits.changes import exchanged
from erasure.erasers import eraser_class, make_eraser
from erasure.errors import InputError, UnknownNameError
from erasure.training import trajectories
from erasure.training.context import FitContext, Reference, TrainingTask
from erasure.training.draws.neighbours import (
    NeighbourPool,
    WorstFirst,
    endangered,
    kept_beside,
    neighbour_weights,
    worst_first,
)
from erasure.training.finetune import Optimisation, finetune
from erasure.training.phrases import class_phrases
from erasure.training.shape import Shape
from erasure.training.student import Student
from erasure.training.terms import TERMS
from erasure.training.terms.attention import AttentionRetention
from erasure.training.terms.direction import along
from erasure.training.terms.drift import drifted
from erasure.training.terms.healing import relative_errors
from erasure.training.terms.relations import inner_relations, local_relations, matching
from tests import tiny

CAT = Concept(target="cat", preserve=("dog", "bird"))
TRAINED = ("duge", "esd", "trce")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample fewer and shorter trajectories: their number is not what is tested."""
    monkeypatch.setattr("erasure.training.terms.attention.POOL_SIZE", 2)
    monkeypatch.setattr("erasure.training.terms.semantic_noise.POOL_SIZE", 2)
    for name, value in (("_STOPS", 2), ("_SAMPLE_STEPS", 3)):
        monkeypatch.setattr(trajectories, name, value)


def task_of(
    backbone: Any, part: str = ".attn2.to_k.", concept: Concept = CAT, reference: Reference = nullcontext
) -> TrainingTask:
    context = FitContext(backbone=backbone)
    return TrainingTask(context=context, requests=[concept], trained=lambda name: part in name, reference=reference)


def student_of(backbone: Any) -> Student:
    return Student(backbone, lambda name: ".attn2.to_k." in name, None, torch.Generator())


def test_the_original_holds_its_own_regions_and_a_changed_model_less() -> None:
    """In [0.5, 1] a concept; the gradient reaches queries and keys and not the last layer's values."""
    pipe = tinyworld.load()
    backbone = backbone_of(pipe)
    loss = AttentionRetention().loss(task_of(backbone))
    student = student_of(backbone)
    own = loss(student, 0, torch.Generator().manual_seed(0))
    assert 0.5 <= float(own) < 0.8
    for weight in student._dense.values():
        weight.data.neg_()
    turned = loss(student, 1, torch.Generator().manual_seed(0))
    assert float(turned) > float(own) + 0.05
    turned.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in student._dense.values())


def test_training_on_it_alone_brings_the_maps_back() -> None:
    pipe = tinyworld.load()
    backbone = backbone_of(pipe)
    keys = backbone.parameters(lambda name: ".attn2.to_k." in name)
    original = {name: parameter.data for name, parameter in keys.items()}
    harmed = {name: 0.1 * weight for name, weight in original.items()}  # nearly flat maps

    def lost(weights: dict[str, torch.Tensor]) -> float:
        """Return the loss over the same 20 draws."""
        draws = torch.Generator().manual_seed(1)
        with exchanged(keys, weights), torch.no_grad():
            return sum(float(loss(student_of(backbone), 0, draws)) for _ in range(5)) / 5

    loss = AttentionRetention().loss(task_of(backbone, reference=lambda: exchanged(keys, original)))
    before = lost(harmed)
    with exchanged(keys, harmed):
        changes = finetune(backbone, lambda name: ".attn2.to_k." in name, loss, Optimisation(steps=24, lr=3e-3))
    learned = {name: harmed[name] + changes[name].of(harmed[name]).float() for name in harmed}
    assert lost(original) < lost(learned) < before - 0.02


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_eraser_takes_it_and_a_weight_of_zero_is_none(name: str, family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())

    def learned(**settings: Any) -> dict[str, torch.Tensor]:
        edit = make_eraser(name, **eraser_class(name).quick, **settings).fit([CAT], FitContext(backbone=backbone))
        weights = backbone.parameters(edit.changes.__contains__)
        return {key: change.of(weights[key].detach()) for key, change in edit.changes.items()}

    plain, none = learned(), learned(shape=Shape(keep={"attention": 0.0}))
    assert all(torch.equal(plain[key], none[key]) for key in plain)
    # The others are held to each family by themselves, below.
    others = () if family != "sd1" else ("semantic-noise",) if name == "trce" else ("semantic-noise", "semantic-kv")
    for term in ("attention", *others):
        held = learned(shape=Shape(keep={term: 100.0}))
        assert not all(torch.equal(plain[key], held[key]) for key in plain)


def test_phrases_speak_of_the_class_and_the_siblings_and_never_of_what_goes() -> None:
    individual = Concept(target="Biscuit", anchor="dog", preserve=("cat", "big Biscuit"), kind="identity")
    phrases = class_phrases([individual])
    assert {"a dog on a table", "a small dog", "a cat in the morning", "a dog standing"} <= set(phrases)
    assert not [phrase for phrase in phrases if "biscuit" in phrase.casefold()]
    assert len(phrases) == len(set(phrases)) >= 40
    style = class_phrases([Concept(target="neon", preserve=("mosaic",), kind="style")])
    assert style
    assert not [phrase for phrase in style if phrase.endswith("standing")]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("term", ["semantic-text", "semantic-kv", "semantic-noise"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_semantic_terms_are_zero_at_the_reference_and_have_a_gradient_beyond(term: Any, family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())
    part = "token_embedding" if term == "semantic-text" else ".attn2.to_k."
    (kept,) = Shape(keep={term: 2.0}).weighted(task_of(backbone, part))
    assert kept.weight == 2.0
    student = Student(backbone, lambda name: part in name, None, torch.Generator())
    draws = torch.Generator().manual_seed(0)
    assert float(kept.loss(student, 0, draws)) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for weight in student._dense.values():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    moved = kept.loss(student, 1, draws)
    assert float(moved) > 1e-8
    moved.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in student._dense.values())


def test_a_term_that_the_trained_weights_do_not_reach_is_refused() -> None:
    backbone = backbone_of(tiny.sd1())
    keys = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert TERMS.get("semantic-kv").reaches([keys], backbone)
    assert TERMS.get("semantic-noise").reaches([keys], backbone)
    assert TERMS.get("attention").reaches([keys], backbone)
    assert not TERMS.get("semantic-text").reaches([keys], backbone)
    table = "text_encoder.text_model.embeddings.token_embedding.weight"
    assert TERMS.get("semantic-text").reaches([table], backbone)
    message = r"shape\.keep\.semantic-kv: expected trained weights .* Use attention or .*semantic-noise or .*\."
    with pytest.raises(InputError, match=message):
        Shape(keep={"semantic-kv": 1.0}).weighted(task_of(backbone, ".attn1."))
    with pytest.raises(InputError, match=r"shape\.keep\.semantic-text"):
        make_eraser("esd", **eraser_class("esd").quick, shape=Shape(keep={"semantic-text": 1.0})).fit(
            [CAT], FitContext(backbone=backbone)
        )


def test_wrong_requests_are_named() -> None:
    alone = task_of(backbone_of(tiny.sd1()), "", Concept(target="cat"))
    with pytest.raises(
        InputError, match=r"shape\.keep\.attention: expected concepts that preserve something, got none"
    ):
        Shape(keep={"attention": 1.0}).weighted(alone)
    assert Shape(keep={"attention": 0.0}).weighted(alone) == []
    with pytest.raises(InputError, match="semantic-kv: expected concepts that preserve something, got none"):
        Shape(keep={"semantic-kv": 1.0}).weighted(alone)
    with pytest.raises(UnknownNameError, match="Did you mean 'attention'"):
        make_eraser("esd", shape={"keep": {"attentoin": 1.0}})
    with pytest.raises(InputError, match="expected a number greater than or equal to 0"):
        make_eraser("esd", shape={"keep": {"attention": -1.0}})


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_healing_is_relative_to_the_reference_and_has_no_unit() -> None:
    reference, predicted = draws(2, 4, 2, 2), draws(2, 4, 2, 2, seed=1)
    errors = relative_errors(predicted, reference, reference)
    torch.testing.assert_close(errors, relative_errors(7 * predicted, 7 * reference, 7 * reference))
    torch.testing.assert_close(relative_errors(1.5 * reference, reference, reference), torch.full((2,), 0.25))


def test_worst_first_raises_what_drifts_and_leaves_still_names() -> None:
    weights = torch.tensor([0.25, 0.25, 0.5])
    raised = worst_first(weights, torch.tensor([0.0, 3.0, 0.0]))
    torch.testing.assert_close(raised, torch.tensor([0.25, 0.25 * e**3, 0.5]) / (0.75 + 0.25 * e**3))
    torch.testing.assert_close(worst_first(weights, torch.zeros(3)), weights)


@pytest.mark.usefixtures("short")
def test_neighbours_have_shares_by_view_and_the_dry_run_leaves_the_model_alone() -> None:
    backbone = backbone_of(tiny.sd1())
    task = task_of(backbone, concept=Concept(target="cat", preserve=("dog", "bird", "car")))
    before = {name: p.detach().clone() for name, p in backbone.parameters(lambda _: True).items()}
    pool = NeighbourPool(task)
    assert not pool.drifts(student_of(backbone)).any(), "the reference does not drift from itself"
    assert [len(pool.rows(name)) for name in pool.names] == [8, 8, 8]
    assert sorted(row for name in pool.names for row in pool.rows(name)) == list(range(24))
    for row in pool.rows("bird"):
        assert "bird" in pool.points.conditioning.prompts[row]
    weights = {view: neighbour_weights(pool, view, 2) for view in ("text", "dry-run", "union")}
    for each in weights.values():
        assert float(each.sum()) == pytest.approx(1.0)
    assert int((weights["text"] > 0).sum()) <= 2
    assert int((weights["dry-run"] > 0).sum()) == 2
    torch.testing.assert_close(weights["union"], (weights["text"] + weights["dry-run"]) / 2)
    order = endangered(task)
    assert [drift for _, drift in order] == sorted((drift for _, drift in order), reverse=True)
    assert order[0][1] > 0
    assert all(torch.equal(p, before[name]) for name, p in backbone.parameters(lambda _: True).items())


@pytest.mark.usefixtures("short")
def test_a_boost_is_the_neighbours_own_guidance() -> None:
    backbone = backbone_of(tiny.sd1())
    task = task_of(backbone, concept=Concept(target="cat", preserve=("dog",)))
    plain, boosted = (TERMS.make("healing", view="text", boost=boost).loss(task) for boost in (0.0, 0.3))
    student = student_of(backbone)
    values = [float(loss(student, 0, torch.Generator().manual_seed(0))) for loss in (plain, boosted)]
    assert values[0] == pytest.approx(0.0, abs=1e-10)
    pool = NeighbourPool(task)
    rows = pool.rows("dog")
    expected, free = pool.reference(rows), pool.reference(rows, backbone.unconditional().expand(len(rows)))
    per_row = relative_errors(expected, expected + 0.3 * (expected - free), expected)
    assert per_row.min() <= values[1] <= per_row.max(), "the one name has all of the weight"


@pytest.mark.usefixtures("short")
def test_worst_neighbour_weighting_looks_at_every_name_and_raises_the_worst() -> None:
    backbone = backbone_of(tiny.sd1())
    task = task_of(backbone, concept=Concept(target="cat", preserve=("dog", "bird", "car")))
    pool = NeighbourPool(task)
    weighting = WorstFirst(pool, torch.full((3,), 1 / 3), every=2)
    student = student_of(backbone)
    with torch.no_grad():
        for leaf in student.trained:
            leaf += 0.3 * draws(*leaf.shape)
    weighting.update(student, 1)
    torch.testing.assert_close(weighting.weights, torch.full((3,), 1 / 3))
    weighting.update(student, 2)
    drifts = pool.drifts(student)
    assert int(weighting.weights.argmax()) == int(drifts.argmax())
    torch.testing.assert_close(weighting.weights, worst_first(torch.full((3,), 1 / 3), drifts))
    loss = TERMS.make("healing", view="text", neighbours=1, worst_every=1).loss(task)
    generator = torch.Generator().manual_seed(0)
    assert all(torch.isfinite(loss(student, step, generator)) for step in range(3))


def test_relations_are_kept_by_a_rotation_and_broken_by_noise() -> None:
    before = draws(40, 6)
    turn = torch.linalg.qr(draws(6, 6, seed=1)).Q
    assert float(local_relations(before @ turn + 3.0, before)) == pytest.approx(0.0, abs=1e-6)
    assert float(local_relations(before + draws(40, 6, seed=2), before)) > 1e-3
    images = draws(2, 9, 6, seed=3)
    assert float(inner_relations(images @ turn, images)) == pytest.approx(0.0, abs=1e-10)
    assert float(inner_relations(2 * images, images)) > 1e-6
    own, other = (float(matching(each, before, 0.07)) for each in (before, draws(40, 6, seed=4)))
    assert own < 0.5 < other


def test_a_feature_is_held_along_its_mean_and_no_shorter() -> None:
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    groups = torch.tensor([0, 0])
    loss = lambda features: float(along(features, reference, groups))  # noqa: E731
    assert loss(reference) == pytest.approx(0.0)
    assert loss(3 * reference) == pytest.approx(0.0), "longer is no worse"
    assert loss(0.5 * reference) == pytest.approx(0.5), "shorter costs as much as is missing"
    assert loss(torch.tensor([[0.0, 1.0]] * 2)) == pytest.approx(1.0)
    two = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(along(two, two, groups)) == pytest.approx(1 - 0.5**0.5)
    assert float(along(two, two, torch.tensor([0, 1]))) == pytest.approx(0.0)


def test_drift_restricts_heads_beyond_the_top_of_the_reference_alone() -> None:
    before = torch.tensor([[[[0.6, 0.4]], [[0.9, 0.1]]]])  # one image, two heads, one pixel, two tokens
    words = torch.tensor([[False, True]])
    assert float(drifted(before, before, words)) == 0.0
    below = torch.tensor([[[[0.7, 0.3]], [[0.7, 0.3]]]])
    assert float(drifted(below, before, words)) == 0.0, (
        "the second head looks more than before, and less than the first did"
    )
    beyond = torch.tensor([[[[0.6, 0.4]], [[0.5, 0.5]]]]).requires_grad_()
    loss = drifted(beyond, before, words)
    expected = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    assert float(loss.detach()) == pytest.approx(expected / 2)
    (gradient,) = torch.autograd.grad(loss, beyond)
    assert not gradient[0, 0].any()
    assert gradient[0, 1].any()
    assert float(drifted(below, before, words, hinge=False)) > 0


def test_prompts_beside_name_a_kept_concept_with_the_target_or_the_anchor() -> None:
    prompts = kept_beside(Concept(target="cat", anchor="dog", preserve=("dog", "umbrella")))
    assert {(kept, other) for _, kept, other in prompts} == {("dog", "cat"), ("umbrella", "cat"), ("umbrella", "dog")}
    for prompt, kept, other in prompts:
        assert f"{kept} and {other}" in prompt
