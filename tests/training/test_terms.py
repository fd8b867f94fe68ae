"""Terms that keep what stands beside the concept."""

from contextlib import nullcontext
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
from erasure.training.finetune import Optimisation, finetune
from erasure.training.phrases import class_phrases
from erasure.training.shape import Shape
from erasure.training.student import Student
from erasure.training.terms import TERMS
from erasure.training.terms.attention import AttentionRetention
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
        """Return the loss over the same 40 draws."""
        draws = torch.Generator().manual_seed(1)
        with exchanged(keys, weights), torch.no_grad():
            return sum(float(loss(student_of(backbone), 0, draws)) for _ in range(10)) / 10

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
    for term in ("attention", "semantic-noise", *(() if name == "trce" else ("semantic-kv",))):
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
    message = r"shape\.keep\.semantic-kv: expected trained weights .* Use attention or semantic-noise\."
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
