"""The ledger: what stands is what was asked for, whatever was done in which order and whenever the process died."""

import json
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.edits import Edit, SolvedChange, WeightEdit
from erasure.errors import BaseMismatchError, ErasureError, InputError, LedgerError, UnknownNameError
from erasure.ledger import Entry
from erasure.ledger.record import parsed
from erasure.training.context import FitContext
from tests import tiny
from tests.processes import in_copies

CONCEPTS = [
    Concept(target="cat", preserve=("dog", "house")),
    Concept(target="neon", kind="style", preserve=("dog", "mosaic")),
    Concept(target="dog", anchor="house", preserve=("boat",)),
]
PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd1()


@pytest.fixture(scope="module")
def edits(pipe):
    return [make_eraser("uce").fit([concept], FitContext(backbone=backbone_of(pipe))) for concept in CONCEPTS]


def new_ledger(folder: Path, pipe) -> Ledger:
    return Ledger.open_or_create(folder, pipe, "tiny")


def weights_under(ledger: Ledger, pipe) -> dict[str, torch.Tensor]:
    with ledger.applied_to(pipe):
        return {name: p.detach().clone() for name, p in backbone_of(pipe).parameters(lambda _: True).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(pipe, amount: float) -> WeightEdit:
    """Return a real trained edit: ESD for one step."""
    return make_eraser("esd", steps=1, sample_steps=2, lr=amount).fit(
        [Concept(target="boat")], FitContext(backbone=backbone_of(pipe))
    )


def test_an_empty_ledger_changes_nothing(tmp_path, pipe) -> None:
    ledger = new_ledger(tmp_path, pipe)
    before = {name: p.detach().clone() for name, p in backbone_of(pipe).parameters(lambda _: True).items()}
    assert ledger.entries == ()
    assert equal(weights_under(ledger, pipe), before)
    assert ledger.verify(pipe) == []


def test_entries_outlive_the_process_that_made_them(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    first, second = (ledger.add(edit) for edit in edits[:2])
    again = Ledger.open(tmp_path)
    assert again.entries == (first, second)
    assert [entry.id for entry in again.entries] == ["001", "002"]
    assert again.entries[0].concepts == (CONCEPTS[0],)
    assert again.entries[0].method == "uce"
    assert again.base == ledger.base
    assert again.verify(pipe) == []


def test_removal_in_sequence_equals_removal_in_any_order_bit_for_bit(tmp_path, pipe, edits) -> None:
    results = []
    for number, order in enumerate(permutations(edits)):
        ledger = new_ledger(tmp_path / str(number), pipe)
        for edit in order:
            ledger.add(edit)
        results.append(weights_under(ledger, pipe))
    assert all(equal(results[0], other) for other in results[1:])


def test_undo_of_any_entry_equals_never_having_removed_it(tmp_path, pipe, edits) -> None:
    for undone in range(3):
        ledger = new_ledger(tmp_path / f"undo-{undone}", pipe)
        never = new_ledger(tmp_path / f"never-{undone}", pipe)
        for number, edit in enumerate(edits):
            ledger.add(edit)
            if number != undone:
                never.add(edit)
        entry = ledger.undo(f"{undone + 1:03d}")
        assert entry.state == "undone"
        assert entry.undone is not None
        assert equal(weights_under(ledger, pipe), weights_under(never, pipe))
        assert ledger.approximate == ()


def test_undo_brings_back_what_a_later_removal_was_to_preserve(tmp_path, pipe) -> None:
    uce = make_eraser("uce")
    ledger, never = new_ledger(tmp_path / "undone", pipe), new_ledger(tmp_path / "never", pipe)
    ledger.remove(pipe, uce, [Concept(target="cat")])
    for each in (ledger, never):
        each.remove(pipe, uce, [Concept(target="dog", preserve=("cat", "house"))])
    assert not equal(weights_under(ledger, pipe), weights_under(never, pipe))
    ledger.undo("001")
    assert equal(weights_under(ledger, pipe), weights_under(never, pipe))


def test_applying_leaves_the_model_as_it_was(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(edits[0])
    before = backbone_of(pipe).parameters(PATH.__eq__)[PATH].detach().clone()
    with ledger.applied_to(pipe):
        assert not torch.equal(backbone_of(pipe).parameters(PATH.__eq__)[PATH], before)
    assert torch.equal(backbone_of(pipe).parameters(PATH.__eq__)[PATH], before)


def test_entries_are_in_the_order_of_their_numbers_beyond_a_thousand(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path / "ledger", pipe)
    entry = ledger.add(edits[0])
    entries = tuple(replace(entry, id=f"{number:03d}") for number in range(1, 1003))
    ledger._store.write(replace(ledger._store.record, entries=entries))
    opened = Ledger.open(tmp_path / "ledger")
    assert [len(opened.standing_upto(name)) for name in ("999", "1000", "1002")] == [999, 1000, 1002]


def test_state_upto_an_entry_is_the_ledger_as_it_was_then(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    states, names = [], []
    for edit in edits:
        entry = ledger.add(edit)
        states.append(weights_under(ledger, pipe))
        names.append(ledger.state())
        assert ledger.state(entry.id) == names[-1]
    assert len(set(names)) == 3
    for entry, then, name in zip(ledger.entries, states, names, strict=True):
        with ledger.applied_to(pipe, upto=entry.id):
            now = backbone_of(pipe).parameters(lambda _: True)
            assert all(torch.equal(now[key], then[key]) for key in now)
        assert ledger.state(entry.id) == name


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6), data=st.data())
def test_any_history_of_additions_and_undos_stands_for_its_survivors(tmp_path_factory, pipe, edits, plan, data) -> None:
    ledger = new_ledger(tmp_path_factory.mktemp("history"), pipe)
    for which, then_undo in plan:
        ledger.add(edits[which])
        if then_undo:
            ledger.undo(data.draw(st.sampled_from([entry.id for entry in ledger.standing])))
    survivors = new_ledger(tmp_path_factory.mktemp("survivors"), pipe)
    by_target = {edit.metadata.concepts: edit for edit in edits}
    for entry in ledger.standing:
        survivors.add(by_target[entry.concepts])
    assert equal(weights_under(ledger, pipe), weights_under(survivors, pipe))
    assert Ledger.open(ledger.path).entries == ledger.entries


def test_a_trained_removal_comes_after_the_joint_solve(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    esd = trained(pipe, 1e-2)
    ledger.add(esd)
    ledger.add(edits[0])
    expected = backbone_of(pipe).parameters(PATH.__eq__)[PATH].double()
    expected = expected + edits[0].changes[PATH].of(expected) + esd.changes[PATH].of(expected)
    assert torch.allclose(weights_under(ledger, pipe)[PATH].double(), expected, atol=1e-6)
    assert [entry.solved for entry in ledger.entries] == [False, True]


def test_undoing_beneath_a_trained_removal_is_labelled_approximate(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(edits[0])
    ledger.remove(pipe, make_eraser("esd", steps=1, sample_steps=2), [Concept(target="boat")])
    ledger.add(edits[1])
    assert ledger.entries[1].started_from == ("001",)
    ledger.undo("003")
    assert ledger.approximate == ()
    assert ledger.moved(pipe) == {}
    ledger.undo("001")
    assert ledger.approximate == ("002",)
    own = WeightEdit.load(tmp_path / ledger.entries[1].file).changes
    weights = backbone_of(pipe).parameters(own.__contains__)
    sizes = [
        sum(float(changes[name].of(weights[name].detach()).square().sum()) for name in own if name in changes)
        for changes in (edits[0].changes, own)
    ]
    assert ledger.moved(pipe) == {"002": pytest.approx((sizes[0] / sizes[1]) ** 0.5, rel=1e-4)}
    assert Ledger.open(tmp_path).verify(pipe) == []
    with ledger.applied_to(pipe):
        pass


def test_removing_through_the_ledger_fits_on_what_stands_and_keeps_the_base(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    seen = []

    esd = make_eraser("esd", steps=2, sample_steps=2)
    fingerprint = backbone_of(pipe).fingerprint()
    ledger.remove(pipe, make_eraser("uce"), [CONCEPTS[0]])
    entry = ledger.remove(pipe, esd, [Concept(target="boat")], on_progress=seen.append, seed=3)
    assert [step.done for step in seen] == [1, 2]
    assert entry.seed == 3
    assert backbone_of(pipe).fingerprint() == fingerprint
    assert ledger.edit().metadata.base_fingerprint == fingerprint
    # The closed form does not depend on the weights it stands on, so adding its own edit gives the same.
    other = new_ledger(tmp_path / "other", pipe)
    other.add(edits[0])
    with ledger.applied_to(pipe, upto="001"):
        now = backbone_of(pipe).parameters(PATH.__eq__)[PATH].detach().clone()
    assert torch.equal(now, weights_under(other, pipe)[PATH])


def test_another_base_is_refused_by_name(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path, pipe)
    stranger = tiny.sd1(seed=1)
    with pytest.raises(BaseMismatchError, match="expected its base 'tiny'"):
        Ledger.open_or_create(tmp_path, stranger, "stranger")
    with pytest.raises(BaseMismatchError, match="Load that base"):
        Ledger.open(tmp_path).add(make_eraser("uce").fit([CONCEPTS[0]], FitContext(backbone=backbone_of(stranger))))
    assert "expected its base" in Ledger.open(tmp_path).verify(stranger)[0]


def test_wrong_ids_and_folders_get_one_clear_line(tmp_path, pipe, edits) -> None:
    with pytest.raises(LedgerError, match=r"expected a folder with a ledger\.json"):
        Ledger.open(tmp_path / "nothing")
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(edits[0])
    with pytest.raises(UnknownNameError, match="Unknown ledger entry '7'"):
        ledger.undo("7")
    assert ledger.undo("1").id == "001"
    with pytest.raises(LedgerError, match="undone at"):
        ledger.undo("001")
    with pytest.raises(LedgerError, match="which holds a ledger"):
        Ledger.create(tmp_path, "0", "tiny")
    (tmp_path / "a-file").write_text("")
    with pytest.raises(LedgerError, match="expected a folder that can be written"):
        Ledger.create(tmp_path / "a-file" / "ledger", "0", "tiny")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "erasure-ledger/9", "base": {}, "entries": []}'])
def test_a_damaged_record_is_refused(tmp_path, content) -> None:
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(LedgerError, match="expected a ledger of format") as caught:
        Ledger.open(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Restore it from a copy.")


def test_an_entry_cannot_point_outside_of_the_ledger(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path, pipe).add(edits[0])
    record = json.loads((tmp_path / "ledger.json").read_text())
    record["entries"][0]["file"] = "edits/../../secret.safetensors"
    (tmp_path / "ledger.json").write_text(json.dumps(record))
    with pytest.raises(LedgerError, match="files in edits/"):
        Ledger.open(tmp_path)


def test_verify_finds_a_changed_a_missing_and_an_exchanged_file(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    entries = [ledger.add(edit) for edit in edits]
    changed, missing, exchanged = (tmp_path / entry.file for entry in entries)
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1
    changed.write_bytes(bytes(data))
    missing.unlink()
    edits[0].save(exchanged)
    problems = ledger.verify(pipe)
    assert len(problems) == 3
    assert "sha256" in problems[0]
    assert "No such file" in problems[1]
    with pytest.raises(LedgerError, match="sha256"):
        ledger.edit()


@pytest.mark.parametrize("change", [{"method": "esd"}, {"settings": {}}, {"seed": 7}])
def test_verify_compares_how_an_entry_was_fitted(tmp_path, pipe, edits, change) -> None:
    ledger = new_ledger(tmp_path, pipe)
    file = ledger.add(edits[0]).file
    record = json.loads((tmp_path / "ledger.json").read_text())
    record["entries"][0].update(change)
    (tmp_path / "ledger.json").write_text(json.dumps(record))
    assert Ledger.open(tmp_path).verify(pipe) == [f"{file}: its header and ledger.json disagree."]


def test_verify_solves_again(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    rows = edits[0].rows
    resized = SolvedChange(rows=rows["text"], size=1.001 * edits[0].changes[PATH].norm)
    for changes in (edits[0].scaled(1.001).changes, dict.fromkeys(edits[0].changes, resized)):
        ledger.add(WeightEdit(changes=changes, metadata=edits[0].metadata, rows=rows))
    assert ["solving it again" in problem for problem in ledger.verify()] == [True, True]


def test_what_removals_preserve_alike_is_stored_once_and_verified(tmp_path, pipe) -> None:
    ledger, uce = new_ledger(tmp_path / "one", pipe), make_eraser("uce")
    ledger.remove(pipe, uce, [Concept(target="cat", preserve=("dog", "house"))])
    blocks = set((ledger.path / "rows").iterdir())
    entry = ledger.remove(pipe, uce, [Concept(target="gun", preserve=("house", "dog"))])
    assert set((ledger.path / "rows").iterdir()) == blocks
    assert (ledger.path / entry.file).stat().st_size < 60_000
    (ledger.path / "rows" / ".killed.tmp").write_bytes(b"half")
    ledger.remove(pipe, uce, [Concept(target="boat", preserve=("bird",))])
    assert {file.suffix for file in (ledger.path / "rows").iterdir()} == {".safetensors"}
    assert ledger.verify(pipe) == []
    copied = Ledger.open(shutil.copytree(ledger.path, tmp_path / "copied"))
    assert equal(weights_under(copied, pipe), weights_under(ledger, pipe))
    damaged = min(blocks)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    problems = ledger.verify(pipe)
    assert len(problems) >= 2
    assert all("rows" in problem and "It was changed" in problem for problem in problems)
    with pytest.raises(LedgerError, match=r"ledger entry 001: .*It was changed"):
        ledger.edit()


def test_a_circle_of_anchors_is_refused_before_anything_is_written(tmp_path, pipe) -> None:
    uce, backbone = make_eraser("uce"), backbone_of(pipe)
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(uce.fit([Concept(target="cat", anchor="dog")], FitContext(backbone=backbone)))
    with pytest.raises(InputError, match="circle"):
        ledger.add(uce.fit([Concept(target="dog", anchor="cat")], FitContext(backbone=backbone)))
    assert len(Ledger.open(tmp_path).entries) == 1
    assert len(list((tmp_path / "edits").iterdir())) == 1


@pytest.mark.parametrize("methods", [("localised", "uce"), ("uce", "localised")])
def test_a_circle_through_weights_and_sampling_is_refused(tmp_path, pipe, methods) -> None:
    ledger = new_ledger(tmp_path, pipe)
    ledger.remove(pipe, make_eraser(methods[0]), [Concept(target="cat", anchor="dog")])
    with pytest.raises(InputError, match="got a circle of cat, dog"):
        ledger.remove(pipe, make_eraser(methods[1]), [Concept(target="dog", anchor="cat")])
    ledger.remove(pipe, make_eraser(methods[1]), [Concept(target="dog", anchor="house")])
    assert len(Ledger.open(tmp_path).entries) == 2


def test_an_anchor_that_was_erased_is_no_circle_and_costs_no_solve(tmp_path, pipe, monkeypatch) -> None:
    uce, backbone = make_eraser("uce"), backbone_of(pipe)
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(uce.fit([Concept(target="cat", anchor="dog")], FitContext(backbone=backbone)))
    monkeypatch.setattr(WeightEdit, "joint", None)
    ledger.add(uce.fit([Concept(target="bird", aliases=("sparrow",), anchor="cat")], FitContext(backbone=backbone)))
    monkeypatch.undo()
    with pytest.raises(InputError, match="circle"):
        ledger.add(uce.fit([Concept(target="dog", anchor="sparrow")], FitContext(backbone=backbone)))
    assert ledger.verify(pipe) == []


def test_a_record_is_json_with_a_line_an_entry(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    assert json.loads((tmp_path / "ledger.json").read_text())["entries"] == []
    for edit in edits:
        ledger.add(edit)
    ledger.undo("002")
    text = (tmp_path / "ledger.json").read_text()
    assert json.loads(text)["entries"] == [json.loads(json.dumps(entry.as_json())) for entry in ledger.entries]
    lines = text.splitlines()
    assert [json.loads(line.rstrip(","))["id"] for line in lines[1:-1]] == ["001", "002", "003"]


def test_a_record_in_another_layout_opens_and_goes_on(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path, pipe).add(edits[0])
    file = tmp_path / "ledger.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))  # as an editor leaves it
    ledger = Ledger.open(tmp_path)
    ledger.add(edits[1])
    assert len(file.read_text().splitlines()) == 4
    assert [entry.concepts for entry in Ledger.open(tmp_path).entries] == [(CONCEPTS[0],), (CONCEPTS[1],)]


def test_an_addition_costs_the_same_whatever_stands_before_it(tmp_path, pipe, edits, monkeypatch) -> None:
    ledger = new_ledger(tmp_path, pipe)
    work = {"written": 0, "read": 0}

    def counted(name, function):
        def call(*args):
            work[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr("erasure.ledger.record.Entry.as_json", counted("written", Entry.as_json))
    monkeypatch.setattr("erasure.ledger.store.parsed", counted("read", parsed))
    sizes = []
    for number in range(1, 13):
        entry = ledger.remove(pipe, make_eraser("uce", rows="last-subject"), [Concept(target=f"thing {number:02d}")])
        assert work == {"written": number, "read": 0}
        sizes.append(len(entry.line))
    assert max(sizes) - min(sizes) < 10  # the seconds may have a digit more or less
    ledger.undo("007")
    assert work == {"written": 13, "read": 0}


def test_what_another_wrote_is_seen_whatever_the_file_looks_like(tmp_path, pipe, edits) -> None:
    ledger = new_ledger(tmp_path, pipe)
    ledger.add(edits[0])
    file = tmp_path / "ledger.json"
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b'"seed": 0', b'"seed": 7'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_ino) == (before.st_size, before.st_ino)
    ledger.add(edits[1])
    assert [entry.seed for entry in Ledger.open(tmp_path).entries] == [7, 0]
    assert [entry.seed for entry in ledger.entries] == [7, 0]


def test_another_process_is_seen_between_two_additions(tmp_path, pipe, edits) -> None:
    edits[1].save(tmp_path / "edit.safetensors")
    ledger = new_ledger(tmp_path / "ledger", pipe)
    ledger.add(edits[0])
    in_copies(lambda: Ledger.open(tmp_path / "ledger").add(Edit.load(tmp_path / "edit.safetensors")).id)
    assert ledger.add(edits[2]).id == "003"
    assert [entry.concepts for entry in Ledger.open(ledger.path).entries] == [(concept,) for concept in CONCEPTS]


def test_two_open_ledgers_do_not_lose_each_others_entries(tmp_path, pipe, edits) -> None:
    one, other = new_ledger(tmp_path, pipe), Ledger.open_or_create(tmp_path, pipe, "tiny")
    one.add(edits[0])
    other.add(edits[1])
    one.undo("002")
    assert [entry.state for entry in Ledger.open(tmp_path).entries] == ["standing", "undone"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path, pipe).add(edits[0])
    before = (tmp_path / "ledger.json").read_bytes()

    def add() -> str:
        # A limit on the size of files is the nearest thing to a full disk that needs no mount.
        ledger = Ledger.open(tmp_path)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            return ledger.add(edits[1]).id
        except ErasureError as error:
            return str(error)

    [line] = in_copies(add)
    assert "File too large" in line
    assert "\n" not in line
    assert (tmp_path / "ledger.json").read_bytes() == before
    assert Ledger.open(tmp_path).verify(pipe) == []
    assert [file.suffix for file in (tmp_path / "edits").iterdir()] == [".safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_can_be_read_and_not_written(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path, pipe).add(edits[0])
    tmp_path.chmod(0o500)
    try:
        assert Ledger.open(tmp_path).verify(pipe) == []
        with pytest.raises(LedgerError, match="Permission denied"):
            Ledger.open(tmp_path).undo("001")
    finally:
        tmp_path.chmod(0o700)


def killed_at(moment: float, folder: Path, edit: Edit) -> bytes:
    """Kill a process that adds and undoes edits a moment after its first addition; return what it reported."""
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        ledger = Ledger.open(folder)
        while True:
            entry = ledger.add(edit)
            os.write(tells, b"+")
            if int(entry.id) % 3 == 0:
                ledger.undo(entry.id)
                os.write(tells, b"-")
    done = os.read(told, 1)  # it is at work
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(tells)
    while more := os.read(told, 65536):
        done += more
    os.close(told)
    return done


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_leaves_the_state_before_or_after(seed, tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path / "ledger", pipe)
    draws = torch.Generator().manual_seed(seed)
    entries = undone = 0
    for _ in range(6):
        moment = 0.03 * float(torch.rand((), generator=draws))
        [done] = in_copies(partial(killed_at, moment, tmp_path / "ledger", edits[0]))
        ledger = Ledger.open(tmp_path / "ledger")
        assert ledger.verify() == []
        now = sum(entry.state == "undone" for entry in ledger.entries)
        added, taken_back = len(ledger.entries) - entries, now - undone
        # What was reported is there, and at most the one operation that was under way besides.
        assert 0 <= added - done.count(b"+") + taken_back - done.count(b"-") <= 1, done
        assert added >= done.count(b"+"), done
        assert taken_back >= done.count(b"-"), done
        entries, undone = len(ledger.entries), now
    ledger = Ledger.open(tmp_path / "ledger")
    assert ledger.verify(pipe) == []
    ledger.add(edits[1])
    assert len(Ledger.open(tmp_path / "ledger").entries) == entries + 1
    assert {f"edits/{file.name}" for file in (ledger.path / "edits").iterdir()} == {e.file for e in ledger.entries}


def test_two_processes_at_once_wait_for_each_other(tmp_path, pipe, edits) -> None:
    new_ledger(tmp_path / "ledger", pipe)
    both_started = get_context("fork").Barrier(2)

    def add_some() -> None:
        ledger = Ledger.open(tmp_path / "ledger")
        both_started.wait()
        for _ in range(10):
            ledger.undo(ledger.add(edits[0]).id)

    in_copies(add_some, add_some)
    ledger = Ledger.open(tmp_path / "ledger")
    assert [entry.id for entry in ledger.entries] == [f"{number:03d}" for number in range(1, 21)]
    assert ledger.standing == ()
    assert ledger.verify(pipe) == []


def test_a_ledger_that_is_held_for_long_says_so(tmp_path, pipe, edits, monkeypatch) -> None:
    ledger = new_ledger(tmp_path, pipe)
    monkeypatch.setattr("erasure.ledger.store._LOCK_SECONDS", 0.05)
    with FileLock(tmp_path / ".lock"), pytest.raises(LedgerError, match="another process has held for") as caught:
        ledger.add(edits[0])
    assert "\n" not in str(caught.value)
    assert ledger.add(edits[0]).id == "001"
