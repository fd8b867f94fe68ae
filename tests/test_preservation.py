"""Terms that keep what stands beside the concept."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edit import exchanged
from erasure.erasers import eraser_class, make_eraser
from erasure.errors import InputError
from erasure.finetune import Student, finetune
from erasure.preservation import attention_retention, preservations
from tests import tiny

CAT = Concept(target="cat", preserve=("dog", "bird"))
TRAINED = ("duge", "esd", "trce")


def student_of(backbone: Any) -> Student:
    return Student(backbone, lambda name: ".attn2.to_k." in name, None, torch.Generator())


def test_the_original_holds_its_own_regions_and_a_changed_model_less() -> None:
    """In [0.5, 1] a concept; the gradient reaches queries and keys and not the last layer's values."""
    pipe = tinyworld.load()
    backbone = backbone_of(pipe)
    loss = attention_retention(backbone, [CAT], nullcontext)
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

    loss = attention_retention(backbone, [CAT], lambda: exchanged(keys, original))
    before = lost(harmed)
    with exchanged(keys, harmed):
        changes = finetune(backbone, lambda name: ".attn2.to_k." in name, loss, steps=24, lr=3e-3)
    learned = {name: harmed[name] + changes[name].of(harmed[name]).float() for name in harmed}
    assert lost(original) < lost(learned) < before - 0.02


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_trained_eraser_takes_it_and_a_weight_of_zero_is_none(name: str, family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())

    def learned(**settings: Any) -> dict[str, torch.Tensor]:
        edit = make_eraser(name, **eraser_class(name).quick, **settings).fit(backbone, [CAT])
        weights = backbone.parameters(edit.changes.__contains__)
        return {key: change.of(weights[key].detach()) for key, change in edit.changes.items()}

    plain, none = learned(), learned(preservation={"attention": 0.0})
    assert all(torch.equal(plain[key], none[key]) for key in plain)
    held = learned(preservation={"attention": 100.0})
    assert not all(torch.equal(plain[key], held[key]) for key in plain)


def test_wrong_requests_are_named() -> None:
    backbone = backbone_of(tiny.sd1())
    with pytest.raises(
        InputError, match=r"preservation.attention: expected concepts that preserve something, got none"
    ):
        preservations({"attention": 1.0}, backbone, [Concept(target="cat")])
    assert preservations({"attention": 0.0}, backbone, [Concept(target="cat")]) == []
    with pytest.raises(InputError, match="preservation"):
        make_eraser("esd", preservation={"attentoin": 1.0})
    with pytest.raises(InputError, match=r"preservation\.attention: expected a number greater than or equal to 0"):
        make_eraser("esd", preservation={"attention": -1.0})
