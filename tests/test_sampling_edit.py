"""Edits that act during sampling: recorded, combined, undone, kept on the disk, beside edits of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from erasure import Concept, Edit, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.edits import SamplingEdit, WeightEdit, joint, weights_of
from erasure.errors import BaseMismatchError, InputError
from erasure.guidance.localised import LocalisedRemoval
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext
from tests import tiny

CAT = Concept(target="cat", preserve=("dog",), aliases=("kitty",))
DOG = Concept(target="dog", anchor="bird", preserve=("cat",))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


def localised(pipe: Any, *concepts: Concept) -> SamplingEdit:
    # Random weights have flat maps, which are at least half their maximum everywhere.
    edit = make_eraser("localised", region="otsu", grow=0).fit(concepts, FitContext(backbone=backbone_of(pipe)))
    assert isinstance(edit, SamplingEdit)
    return edit


def closed_form(pipe: Any, *concepts: Concept) -> Edit:
    return make_eraser("uce", rows="last-subject").fit(concepts, FitContext(backbone=backbone_of(pipe)))


def images(pipe: Any) -> Tensor:
    return sample(
        pipe, ["a cat and a dog", "a bird"], [0, 1], SamplingSettings(steps=2, guidance_scale=4.0), output="latents"
    )


def images_under(edit: Edit, pipe: Any) -> Tensor:
    with edit.applied_to(pipe):
        return images(pipe)


def test_it_acts_on_prompts_that_name_it_and_is_undone(pipe: Any) -> None:
    before = images(pipe)
    inside = images_under(localised(pipe, CAT), pipe)
    assert not torch.equal(inside[0], before[0])
    assert torch.equal(inside[1], before[1])
    assert torch.equal(images(pipe), before)


def test_save_then_load_is_equal_with_and_without_weights_beneath(pipe: Any, tmp_path: Path) -> None:
    alone = localised(pipe, CAT, DOG)
    both = joint([alone, closed_form(pipe, Concept(target="bird"))])
    for edit in (alone, both):
        loaded = Edit.load(edit.save(tmp_path / "edit.safetensors"))
        assert isinstance(loaded, SamplingEdit)
        assert loaded.metadata == edit.metadata
        assert loaded.guidances == alone.guidances
        assert torch.equal(images_under(loaded, pipe), images_under(edit, pipe))
    with pytest.raises(InputError, match="expected an edit of the format erasure-edit/3") as caught:
        WeightEdit.load(tmp_path / "edit.safetensors")
    assert "\n" not in str(caught.value)


def test_a_switch_shows_what_applying_shows(pipe: Any) -> None:
    edit = joint([localised(pipe, CAT), closed_form(pipe, Concept(target="bird"))])
    before, inside = images(pipe), images_under(edit, pipe)
    with edit.switched(pipe) as switch:
        for on in (False, True, True, False, True):
            switch.turn(on=on)
            assert torch.equal(images(pipe), inside if on else before)
    assert torch.equal(images(pipe), before)


def test_removals_of_one_kind_become_one_guidance(pipe: Any) -> None:
    together = joint([localised(pipe, CAT), localised(pipe, DOG)])
    assert isinstance(together, SamplingEdit)
    (guidance,) = together.guidances
    assert guidance == localised(pipe, CAT, DOG).guidances[0]
    assert isinstance(guidance, LocalisedRemoval)
    assert guidance.concepts == ("cat", "kitty", "dog")
    assert guidance.preserve == ()
    assert guidance.replaced_in("a cat and a dog") == "a bird"
    assert not weights_of(together).changes


def test_an_anchor_that_is_removed_resolves_to_its_own_anchor(pipe: Any) -> None:
    merged = joint([localised(pipe, Concept(target="cat", anchor="dog")), localised(pipe, DOG)])
    assert isinstance(merged, SamplingEdit)
    (guidance,) = merged.guidances
    assert isinstance(guidance, LocalisedRemoval)
    assert guidance.replaced_in("a cat") == guidance.replaced_in("a dog") == "a bird"
    with pytest.raises(InputError, match="got the circle"):
        localised(pipe, Concept(target="cat", anchor="dog"), Concept(target="dog", anchor="cat"))


def test_a_longer_name_wins_over_a_shorter_one_inside_it() -> None:
    removal = LocalisedRemoval(concepts=("catfish", "whiskered fish"), preserve=("fish",))
    assert removal.replaced_in("a whiskered fish and a house") == "a house"
    assert removal.replaced_in("a catfish and a fish") == removal.replaced_in("a catfish")


def test_another_base_is_refused(pipe: Any) -> None:
    edit = localised(pipe, CAT)
    with pytest.raises(BaseMismatchError), edit.applied_to(tiny.sd1(seed=1)):
        pass


def test_a_ledger_records_undoes_and_combines_it_with_other_removals(pipe: Any, tmp_path: Path) -> None:
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    eraser = make_eraser("localised", region="otsu", grow=0)
    before = images(pipe)
    first = ledger.remove(pipe, eraser, [CAT])
    assert (first.method, first.solved, first.started_from) == ("localised", False, ())
    with ledger.applied_to(pipe):
        guided = images(pipe)
    assert torch.equal(guided, images_under(localised(pipe, CAT), pipe))
    ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [Concept(target="bird")])
    trained = ledger.remove(pipe, make_eraser("esd", steps=1, sample_steps=2, lr=1e-3), [Concept(target="boat")])
    assert trained.started_from == ("002",)  # the weights beneath it; guidance does not act during a fit
    assert [entry.id for entry in Ledger.open(tmp_path / "ledger").during_sampling] == ["001"]
    assert ledger.verify(pipe) == []
    ledger.undo("001")
    assert ledger.approximate == ()
    assert isinstance(ledger.edit(), WeightEdit)
    ledger.undo("002")
    ledger.undo("003")
    with ledger.applied_to(pipe):
        assert torch.equal(images(pipe), before)


def test_what_depends_on_the_text_alone_is_never_approximate(pipe: Any, tmp_path: Path) -> None:
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [Concept(target="bird")])
    ledger.remove(pipe, make_eraser("localised"), [CAT])
    ledger.undo("001")
    assert ledger.approximate == ()
    assert ledger.moved(pipe) == {}
