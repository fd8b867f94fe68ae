"""Stacks: order, clashes, the exact product of edits of different sides, one entry of a ledger."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.cli.ledger import log, undo
from erasure.concept import Concept
from erasure.edits import DenseChange, WeightEdit
from erasure.erasers import make_eraser
from erasure.erasers.absent import Absent
from erasure.erasers.hirm import HiRM
from erasure.erasers.oce import OCE
from erasure.erasers.rece import RECE
from erasure.erasers.speed import SPEED
from erasure.erasers.stack import Stack
from erasure.erasers.uce import UCE
from erasure.errors import InputError
from erasure.ledger import Ledger
from erasure.runs.removal import remove
from erasure.runs.schema import parse
from erasure.training.absence.batches import Material
from erasure.training.absence.images import ImageSettings
from erasure.training.context import FitContext, TrainingTask
from tests import tiny

CAT = Concept(target="cat", anchor="boat", preserve=("dog",))
QUICK_HIRM = HiRM(steps=1, lr=1e-3)


def weights(pipe: Any, edit: Any) -> dict[str, torch.Tensor]:
    with edit.applied_to(pipe):
        named = backbone_of(pipe).parameters(edit.changes.__contains__)
        return {name: parameter.detach().clone() for name, parameter in named.items()}


def test_a_factor_on_a_map_is_their_product() -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    stacked = weights(pipe, Stack(parts=(SPEED(), OCE())).fit([CAT], FitContext(backbone=backbone)))
    first = SPEED().fit([CAT], FitContext(backbone=backbone))
    with first.applied_to(pipe):
        second = OCE().fit([CAT], FitContext(backbone=backbone_of(pipe)))
        with second.applied_to(pipe, check=False):
            for name, parameter in backbone_of(pipe).parameters(stacked.__contains__).items():
                torch.testing.assert_close(stacked[name], parameter.detach())


def test_later_parts_are_fitted_on_the_edited_encoder() -> None:
    pipe = tiny.sd1()
    context = FitContext(backbone=backbone_of(pipe))
    stacked = Stack(parts=(QUICK_HIRM, SPEED())).fit([CAT], context)
    alone = SPEED().fit([CAT], context)
    assert isinstance(stacked, WeightEdit)
    assert stacked.rows is not None
    assert alone.rows is not None
    assert not torch.equal(stacked.rows["text"].targets, alone.rows["text"].targets)
    with QUICK_HIRM.fit([CAT], context).applied_to(pipe):
        inside = SPEED().problems_of([CAT], FitContext(backbone=backbone_of(pipe)))[0]
    torch.testing.assert_close(stacked.rows["text"].targets, inside.targets)
    assert [part.method for part in stacked.metadata.parts] == ["hirm", "speed"]


def test_rece_after_a_map_adds_its_rows_to_that_map() -> None:
    stack = Stack(parts=(SPEED(), RECE(rounds=2)))
    assert stack.fitted == (RECE(rounds=2, base=SPEED()),)
    assert (stack.dependence, Stack(parts=(SPEED(),)).dependence) == ("base", "text")
    context = FitContext(backbone=backbone_of(tiny.sd1()))
    one, other = (eraser.fit([CAT], context) for eraser in (stack, RECE(rounds=2, base=SPEED())))
    assert isinstance(one, WeightEdit)
    assert isinstance(other, WeightEdit)
    assert one.closed_form
    for name, weight in tiny.text_weights(context.backbone).items():
        if name in one.changes:
            torch.testing.assert_close(one.edited(name, weight.detach()), other.edited(name, weight.detach()))


def test_another_order_is_refused() -> None:
    with pytest.raises(InputError, match=r"stack.parts: expected the text encoder before .* Put 'hirm' first"):
        Stack(parts=(SPEED(), HiRM()))


def test_two_maps_of_text_states_are_refused() -> None:
    with pytest.raises(InputError, match="expected one map of text states, got speed and uce"):
        Stack(parts=(SPEED(), UCE()))


def test_parts_that_cancel_each_other_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OCE, "clashes", {"speed": "a reason"})
    with pytest.raises(InputError, match=r"got 'speed' and 'oce': a reason\. Leave one of them out"):
        Stack(parts=(SPEED(), OCE()))


def test_a_stack_removes_a_family_at_once_if_a_part_does() -> None:
    assert not Stack().at_once
    assert Stack(parts=(SPEED(), make_eraser("absent"))).at_once
    weapons = parse({"eraser": {"name": "speed+trce"}, "concepts": [{"target": "weapons"}]})
    alone = parse({"eraser": {"name": "trce"}, "concepts": [{"target": "weapons"}]})
    assert [concept.target for concept in weapons.concepts] == [concept.target for concept in alone.concepts]
    assert len(weapons.concepts) > 1
    listed = parse({"eraser": ["speed", {"name": "absent"}], "concepts": [{"target": "weapon"}]})
    assert len(listed.concepts) == len(weapons.concepts)


def test_a_family_is_one_entry_of_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPEED, "together", True)
    concepts = [{"target": "cat"}, {"target": "dog"}]
    run = parse({"model": str(tmp_path), "eraser": ["speed"], "concepts": concepts})
    pipe = tiny.sd1()
    (entry,) = remove(run, pipe, Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny"))
    assert [concept.target for concept in entry.concepts] == ["cat", "dog"]


def test_a_stack_in_a_stack_is_refused() -> None:
    with pytest.raises(InputError, match=r"stack.parts: expected single erasers, got a stack"):
        Stack(parts=(Stack(), SPEED()))


def test_a_model_that_a_part_does_not_cover_is_refused_before_the_first_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SPEED, "fit", lambda *_: pytest.fail("it is fitted"))
    stack = make_eraser("stack", parts=("speed", "adavd"))
    with pytest.raises(InputError, match="adavd: expected a model"):
        stack.fit([CAT], FitContext(backbone=backbone_of(tiny.flux())))


def test_a_plus_and_a_list_are_stacks_with_the_settings_of_the_profile() -> None:
    run = parse({"eraser": {"name": "hirm+cfe+rece"}, "concepts": [{"target": "dog"}]})
    assert isinstance(run.eraser, Stack)
    assert [part.name for part in run.eraser.parts] == ["hirm", "cfe", "rece"]
    assert run.eraser.parts[1].as_settings()["keep_rank"] == 24
    listed = parse({"eraser": ["hirm", {"name": "cfe"}, "rece"], "concepts": [{"target": "dog"}]})
    assert listed.eraser == run.eraser
    assert parse(run.as_json()) == run
    with pytest.raises(Exception, match="hirmm"):
        parse({"eraser": {"name": "hirmm+speed"}, "concepts": [{"target": "dog"}]})


def test_a_stack_is_one_entry_with_its_parts_and_is_undone_as_one(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    before = {name: weight.clone() for name, weight in pipe.text_encoder.state_dict().items()}
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    entry = ledger.remove(pipe, make_eraser("stack", parts=[{"name": "hirm", "steps": 1, "lr": 1e-3}, "speed"]), [CAT])
    assert (entry.method, entry.shown_method, entry.solved) == ("stack", "hirm+speed", False)
    assert ledger.verify(pipe) == []
    with ledger.applied_to(pipe):
        assert any(not torch.equal(before[name], weight) for name, weight in pipe.text_encoder.state_dict().items())
    ledger.undo("001")
    assert not ledger.edit().changes  # type: ignore[attr-defined]


QUICK_ABSENT = Absent(**{**Absent.quick, "steps": 1})


def test_absent_on_the_text_path_takes_its_targets_from_the_model_before_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    before = {name: weight.detach().clone() for name, weight in backbone.parameters(lambda _: True).items()}
    states = backbone.encode(["cat"]).states
    tasks: list[TrainingTask] = []
    learned = Absent.learned

    def recorded(eraser: Absent, task: TrainingTask, *rest: Any) -> Any:
        changed = {
            name for name, weight in backbone.parameters(lambda _: True).items() if not weight.equal(before[name])
        }
        with task.reference():
            for name, weight in backbone.parameters(lambda _: True).items():
                assert torch.equal(weight, before[name])
        assert {name.partition(".")[0] for name in changed} == {"text_encoder", "unet"}
        material = Material(task, 1, 1, ImageSettings(steps=2, guidance_scale=4.0))
        row = material.known_prompts.prompts.index("cat")
        torch.testing.assert_close(material.known_prompts.states[row : row + 1], states)
        assert not torch.allclose(material.prompts.states[row : row + 1], states, atol=1e-4)
        tasks.append(task)
        return learned(eraser, task, *rest)

    monkeypatch.setattr(Absent, "learned", recorded)
    Stack(parts=(QUICK_HIRM, UCE(), QUICK_ABSENT)).fit([CAT], FitContext(backbone=backbone))
    assert len(tasks) == 1
    with tasks[0].reference():
        assert all(weight.equal(before[name]) for name, weight in backbone.parameters(lambda _: True).items())


def test_without_parts_beneath_absent_is_itself() -> None:
    context = FitContext(backbone=backbone_of(tiny.sd1()))
    alone, stacked = (eraser.fit([CAT], context) for eraser in (QUICK_ABSENT, Stack(parts=(QUICK_ABSENT,))))
    assert isinstance(stacked, WeightEdit)
    for name, change in alone.changes.items():
        torch.testing.assert_close(stacked.changes[name].of(change.delta), change.of(change.delta), rtol=0, atol=0)


def test_in_a_ledger_the_map_of_a_stack_is_solved_with_the_others_and_its_training_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny.sd1()
    weight = tiny.text_weights(backbone_of(pipe))
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    boat, cat = Concept(target="boat", preserve=("dog",)), Concept(target="cat", preserve=("dog",))
    first = ledger.remove(pipe, UCE(), [boat])
    stack = ledger.remove(pipe, Stack(parts=(UCE(), QUICK_ABSENT)), [cat])
    assert (stack.solved, stack.started_from) == (False, (first.id,))
    assert ledger.verify(pipe) == []
    context = FitContext(backbone=backbone_of(pipe))
    both = WeightEdit.joint([UCE().fit([concept], context) for concept in (boat, cat)])
    name = next(name for name in weight if name in both.changes)
    original = weight[name].detach()

    def trained() -> torch.Tensor:
        [dense] = [part for part in stored.changes[name].parts if isinstance(part, DenseChange)]
        return dense.delta.double()

    stored = Ledger.open(ledger.path)._store.load(stack)
    expected = both.changes[name].of(original.double()) + trained()
    torch.testing.assert_close(ledger.edit().changes[name].of(original.double()), expected)

    undo(ledger.path, first.id)  # exact for the map; the training stands as it was fitted
    assert "002: its map is solved anew; absent was trained on top of an undone removal" in capsys.readouterr().out
    log(ledger.path, as_json=True)
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert [entry["approximate_parts"] for entry in entries] == [[], ["absent"]]
    ledger = Ledger.open(ledger.path)
    assert ledger.approximate == (stack.id,)
    assert ledger.approximate_parts(stack.id) == ("absent",)
    alone = UCE().fit([cat], context).changes[name].of(original.double()) + trained()
    torch.testing.assert_close(ledger.edit().changes[name].of(original.double()), alone)
    assert ledger.approximate_parts(first.id) == ()
    ledger.undo(stack.id)
    assert not ledger.edit().changes


def test_a_map_read_by_an_encoder_that_is_edited_no_longer_is_approximate(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    ledger = Ledger.open_or_create(tmp_path / "ledger", pipe, "tiny")
    ledger.remove(pipe, QUICK_HIRM, [Concept(target="boat")])
    stack = ledger.remove(
        pipe, make_eraser("stack", parts=("uce", QUICK_HIRM.as_settings() | {"name": "hirm"})[::-1]), [CAT]
    )
    ledger.undo("001")
    assert ledger.approximate_parts(stack.id) == ("hirm", "uce")
