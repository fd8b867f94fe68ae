"""The same removals on another model of the family."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure import Concept, Ledger, erase, make_eraser
from erasure.backbones import backbone_of
from erasure.errors import BaseMismatchError, InputError
from erasure.ledger.replay import replay
from tests import tiny


@pytest.fixture
def source(tmp_path: Path) -> Ledger:
    """A ledger with a solved removal, one that was taken back, and a trained one."""
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path / "source", pipe, "base")
    uce = make_eraser("uce", rows="last-subject", reg=0.25)
    ledger.remove(pipe, uce, [Concept(target="cat", preserve=("dog",))])
    ledger.remove(pipe, uce, [Concept(target="tree")])
    esd = make_eraser("esd", steps=1, sample_steps=2)
    ledger.remove(pipe, esd, [Concept(target="gun")], seed=3)
    ledger.undo("2")
    return ledger


def weights(pipe: Any, ledger: Ledger) -> dict[str, torch.Tensor]:
    with ledger.applied_to(pipe):
        return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


def test_removals_are_fitted_anew_on_the_other_model(source: Ledger, tmp_path: Path) -> None:
    other = tiny.sd1(seed=1)
    ledger, entries = replay(source, other, "other", tmp_path / "new")
    assert [(entry.method, entry.concepts[0].target, entry.seed) for entry in entries] == [
        ("uce", "cat", 0),
        ("esd", "gun", 3),
    ]
    assert [entry.settings for entry in ledger.entries] == [entry.settings for entry in source.standing]
    assert ledger.verify(other) == []
    # By hand, on that model:
    by_hand = Ledger.open_or_create(tmp_path / "by-hand", other, "other")
    for entry in source.standing:
        by_hand.remove(other, make_eraser(entry.method, **entry.settings), entry.concepts, seed=entry.seed)
    mine, theirs = weights(other, by_hand), weights(other, ledger)
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


def test_on_its_own_base_it_is_the_same_ledger(source: Ledger, tmp_path: Path) -> None:
    # Not the trained removal, which would start from what stands now.
    pipe = tiny.sd1()
    source.undo("3")
    ledger, entries = replay(source, pipe, "base", tmp_path / "new")
    assert len(list(entries)) == 1
    mine, theirs = weights(pipe, source), weights(pipe, ledger)
    assert all(torch.equal(weight, theirs[name]) for name, weight in mine.items())


def test_the_new_ledger_says_where_it_came_from(source: Ledger, tmp_path: Path) -> None:
    ledger, entries = replay(source, tiny.sd1(seed=1), "other", tmp_path / "new")
    list(entries)
    origin = Ledger.open(tmp_path / "new").origin
    assert origin is not None
    assert (origin.base, origin.state, origin.entries) == (source.base, source.state(), ("001", "003"))
    assert ledger.base.name == "other"
    assert source.origin is None
    assert "origin" not in json.loads((source.path / "ledger.json").read_text())


def test_a_replay_that_was_cut_short_goes_on(source: Ledger, tmp_path: Path) -> None:
    other = tiny.sd1(seed=1)
    _, entries = replay(source, other, "other", tmp_path / "new")
    next(entries)
    ledger, entries = replay(source, other, "other", tmp_path / "new")
    assert len(ledger.entries) == 1
    assert [entry.id for entry in entries] == ["002"]
    assert list(replay(source, other, "other", tmp_path / "new")[1]) == []


def test_a_folder_with_another_ledger_is_refused(source: Ledger, tmp_path: Path) -> None:
    other = tiny.sd1(seed=1)
    Ledger.open_or_create(tmp_path / "own", other, "other")
    with pytest.raises(InputError, match="expected a new folder, or one that a replay of the same removals began"):
        replay(source, other, "other", tmp_path / "own")
    with pytest.raises(BaseMismatchError):
        replay(source, other, "other", source.path)


def test_another_family_is_refused_before_anything_is_written(source: Ledger, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a model of the same family as 'base', got 'big'"):
        replay(source, tiny.sdxl(), "big", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_made_again_is_refused(source: Ledger, tmp_path: Path) -> None:
    edit = erase(tiny.sd1(), "rose", eraser=make_eraser("uce", rows="last-subject"))
    source.add(replace(edit, metadata=replace(edit.metadata, method="imported"), rows=None))
    with pytest.raises(InputError, match=r"expected removals by .*uce, got 004 by 'imported'"):
        replay(source, tiny.sd1(seed=1), "other", tmp_path / "new")
    empty = Ledger.create(tmp_path / "empty", backbone_of(tiny.sd1()).fingerprint(), "base")
    with pytest.raises(InputError, match="expected removals that stand, got none"):
        replay(empty, tiny.sd1(seed=1), "other", tmp_path / "new")
