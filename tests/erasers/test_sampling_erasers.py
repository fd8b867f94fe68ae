"""Erasers that act during sampling: recorded, combined, exported as a pipeline and taken back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.edits import SamplingEdit
from erasure.erasers import eraser_class, eraser_names
from erasure.errors import InputError
from erasure.guidance.texts import TextGuidance
from erasure.pipelines.export.formats import GUIDANCES, Export, write_export
from erasure.training.context import FitContext
from tests import tiny

NAMES = [name for name in eraser_names() if eraser_class(name).stage == "sampling" and name != "localised"]


STRONG_OCE = {"name": "oce", "alpha": 1000.0}


def images(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat and a dog", num_inference_steps=2, output_type="latent", generator=generator).images


@pytest.mark.parametrize("name", NAMES)
def test_a_ledger_records_exports_and_undoes_it(name: str, tmp_path: Path) -> None:
    pipe = tiny.sd1()
    pipe.save_pretrained(tmp_path / "model")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    plain = images(pipe)
    ledger = Ledger.create(tmp_path / "ledger", backbone_of(pipe).fingerprint(), str(tmp_path / "model"))
    eraser = make_eraser(name, **eraser_class(name).quick)
    first = ledger.remove(pipe, eraser, [Concept(target="cat", aliases=("kitten",), preserve=("bird",))])
    with ledger.applied_to(pipe):
        alone = images(pipe)
    second = ledger.remove(pipe, eraser, [Concept(target="dog", preserve=("bird",))])
    edit = ledger.edit()
    assert isinstance(edit, SamplingEdit)
    (guidance,) = edit.guidances
    assert isinstance(guidance, TextGuidance)
    assert guidance.concepts == ("cat", "kitten", "dog")
    with Ledger.open(tmp_path / "ledger").applied_to(pipe):
        both = images(pipe)
    assert not torch.equal(both, plain)
    if name in GUIDANCES:
        (tmp_path / "out").mkdir()
        write_export(ledger, pipe, Export(format="pipeline"), tmp_path / "out")
        exported = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
        assert torch.equal(images(exported), both)
    ledger.undo(second.id)
    with ledger.applied_to(pipe):
        assert torch.equal(images(pipe), alone)
    ledger.undo(first.id)
    with ledger.applied_to(pipe):
        assert torch.equal(images(pipe), plain)


@pytest.mark.parametrize(
    "parts",
    [
        ("safree", "semantic-surgery"),
        ("semantic-surgery", "safree"),
        (STRONG_OCE, "adavd"),
        (STRONG_OCE, "casteer"),
        ("casteer", "adavd"),
    ],
)
def test_those_that_undo_one_another_are_not_stacked(parts: tuple[Any, str]) -> None:
    with pytest.raises(InputError, match=r"stack.parts: expected parts that go together, got") as caught:
        make_eraser("stack", parts=parts)
    assert "\n" not in str(caught.value)


def test_one_stands_on_a_change_of_weights() -> None:
    pipe = tiny.sd1()
    stacked = make_eraser("stack", parts=("uce", {"name": "sld", "strength": "max"}))
    edit = stacked.fit([Concept(target="cat")], FitContext(backbone=backbone_of(pipe)))
    assert isinstance(edit, SamplingEdit)
    assert edit.weights is not None
    plain = images(pipe)
    with edit.weights.applied_to(pipe):
        beneath = images(pipe)
    with edit.applied_to(pipe):
        assert not torch.equal(images(pipe), beneath)
    assert torch.equal(images(pipe), plain)


def test_one_that_projects_stands_beside_one_that_mirrors() -> None:
    make_eraser("stack", parts=(STRONG_OCE, {"name": "adavd", "strength": 1.0}))
    make_eraser("stack", parts=("oce", "adavd"))


def test_a_ledger_refuses_what_does_not_go_together_before_it_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    cat, dog = Concept(target="cat", aliases=("kitten",)), Concept(target="dog")
    surgery, safree = make_eraser("semantic-surgery"), make_eraser("safree")
    ledger.remove(pipe, make_eraser("stack", parts=("uce", "semantic-surgery")), [cat])
    edit = safree.fit([dog], FitContext(backbone=backbone_of(pipe)))
    monkeypatch.setattr(type(safree), "fit", lambda *_: pytest.fail("it is fitted"))
    refused = r"got one by 'safree' beside 001 by 'uce\+semantic-surgery': both move the same states"
    with pytest.raises(InputError, match=refused):
        ledger.remove(pipe, safree, [dog])
    with pytest.raises(InputError, match=refused):
        ledger.add(edit)
    ledger.remove(pipe, surgery, [dog])
    ledger.remove(pipe, make_eraser("oce", alpha=1000.0), [Concept(target="bird")])
    ledger.remove(pipe, make_eraser("adavd"), [Concept(target="boat")])  # of another concept
    with pytest.raises(InputError, match="beside 003 by 'oce': two reflections of one concept cancel"):
        ledger.remove(pipe, make_eraser("adavd"), [Concept(target="robin", aliases=("Bird",))])
    ledger.undo("001")
    ledger.undo("002")
    ledger.add(edit)
