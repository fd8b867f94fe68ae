"""A list of removals as one piece of work: the entries of single removals, prompts read once."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.errors import AlreadyRemovedError, InputError
from erasure.ledger import checks, standing
from erasure.loading.models import load_stored
from tests import tiny

REQUESTS = [
    (Concept(target="cat", preserve=("dog",)),),
    (Concept(target="Van Gogh", kind="style", anchor="Monet", preserve=("Dali",)),),
    (Concept(target="dog", aliases=("puppy",)), Concept(target="boat")),
]


def new_ledger(folder: Path, pipe: Any) -> Ledger:
    return Ledger.open_or_create(folder, pipe, "tiny")


def weights(ledger: Ledger, pipe: Any) -> dict[str, torch.Tensor]:
    with ledger.applied_to(pipe):
        return {name: p.detach().clone() for name, p in backbone_of(pipe).parameters(lambda _: True).items()}


SETTINGS: dict[str, dict[str, Any]] = {"uce": {"trailing_states": 2}, "rece": {"base": "speed"}}


@pytest.mark.parametrize("method", ["uce", "speed", "cfe", "rece", "oce", "sld"])
def test_entries_of_a_list_are_those_of_single_removals_to_the_last_bit(tmp_path: Path, method: str) -> None:
    (tmp_path / "captions.txt").write_text("a red house\na boat\n")
    settings = {"captions": str(tmp_path / "captions.txt")} if method == "oce" else SETTINGS.get(method, {})
    pipe, eraser = tiny.sd1(), make_eraser(method, **settings)
    alone, listed = (new_ledger(tmp_path / name, pipe) for name in ("alone", "listed"))
    for concepts in REQUESTS:
        alone.remove(pipe, eraser, concepts, seed=3)
    assert [entry.concepts for entry in listed.remove_each(pipe, eraser, REQUESTS, seed=3)] == REQUESTS
    assert [entry.seed for entry in listed.entries] == [3, 3, 3]
    if method == "sld":
        assert listed.edit().metadata.concepts == alone.edit().metadata.concepts
        return
    for ledger in (alone, listed):
        ledger.undo("001")
    one, other = weights(alone, pipe), weights(listed, pipe)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert listed.verify(pipe) == []


@pytest.mark.parametrize(
    ("method", "settings"), [("uce", {}), ("speed", {}), ("cfe", {"least_share": 0.0}), ("rece", {"base": "speed"})]
)
def test_the_encoder_reads_a_list_together_and_each_beginning_once(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    pipe, eraser = tiny.sd1(vocabulary="clip"), make_eraser(method, **settings)
    read: list[int] = []
    whole = new_ledger(tmp_path / "whole", pipe)
    with pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel())):
        list(whole.remove_each(pipe, eraser, REQUESTS))
        together, calls = sum(read), len(read)
        read.clear()
        for concepts in REQUESTS:
            new_ledger(tmp_path / concepts[0].target, pipe).remove(pipe, eraser, concepts)
    # CFE looks for the neighbours of targets before it reads the states of those.
    assert calls <= together // 1000 + (2 if method == "cfe" else 1)
    assert together < sum(read)


# Of encoders that are read in batches, bits depend on what is read beside a prompt.
@pytest.mark.parametrize(("make", "apart"), [(tiny.sd1, 0.0), (tiny.sd3, 1e-5)])
def test_lots_of_a_list_share_what_they_preserve_and_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, apart: float
) -> None:
    pipe, eraser = make(), make_eraser("speed")
    requests = [(Concept(target=name, preserve=("dog", "boat")),) for name in ("cat", "tree", "house")]
    alone = new_ledger(tmp_path / "alone", pipe)
    for concepts in requests:
        alone.remove(pipe, eraser, concepts)
    monkeypatch.setattr("erasure.erasers.shared_map._READ_TOGETHER", 1)
    read: list[str] = []
    pick = type(backbone_of(pipe)).pick
    monkeypatch.setattr(
        type(backbone_of(pipe)),
        "pick",
        lambda self, prompts, places: read.extend(prompts) or pick(self, prompts, places),
    )
    listed = new_ledger(tmp_path / "listed", pipe)
    list(listed.remove_each(pipe, eraser, requests))
    assert [read.count(name) for name in ("dog", "boat", "cat", "tree", "house")] == [1] * 5
    one, other = weights(alone, pipe), weights(listed, pipe)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= apart


def test_a_caller_that_stops_leaves_the_entries_so_far(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    removals = new_ledger(tmp_path, pipe).remove_each(pipe, make_eraser("uce"), REQUESTS)
    assert next(removals).id == "001"
    assert [entry.id for entry in Ledger.open(tmp_path).entries] == ["001"]
    removals.close()
    assert Ledger.open(tmp_path).verify(pipe) == []


def test_a_name_that_is_too_long_is_refused_before_the_first_entry(tmp_path: Path) -> None:
    pipe = tiny.sd1()
    requests = [*REQUESTS, (Concept(target="a" * 200),)]
    with pytest.raises(InputError, match="expected a name of at most"):
        next(new_ledger(tmp_path, pipe).remove_each(pipe, make_eraser("uce"), requests))
    assert Ledger.open(tmp_path).entries == ()


def test_what_stands_removed_is_left_out_or_refused(tmp_path: Path) -> None:
    pipe, uce = tiny.sd1(), make_eraser("uce")
    ledger = new_ledger(tmp_path, pipe)
    ledger.remove(pipe, uce, REQUESTS[1])
    late: list[Any] = []
    list(ledger.remove_each(pipe, uce, REQUESTS, distinct=True, on_removed_already=late.append))
    assert late == [REQUESTS[1]]
    assert [entry.concepts for entry in ledger.entries] == [REQUESTS[1], REQUESTS[0], REQUESTS[2]]
    with pytest.raises(AlreadyRemovedError, match="got 'cat', which entry 002 removes"):
        list(ledger.remove_each(pipe, uce, REQUESTS, distinct=True))


@pytest.mark.parametrize(("method", "settings"), [("uce", {}), ("speed", {"rows": "templates"}), ("cfe", {})])
def test_a_model_on_the_disk_has_each_encoder_read_once_for_a_list(
    tmp_path: Path, method: str, settings: dict[str, str]
) -> None:
    tiny.sdxl().save_pretrained(tmp_path / "model")
    pipe = load_stored(str(tmp_path / "model"))
    requests = [(Concept(target=name, kind="style"),) for name in ("Van Gogh", "Monet", "Dali")]
    read: list[str] = []
    with ExitStack() as stack:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            stack.enter_context(encoder.register_forward_pre_hook(lambda module, _: read.append(type(module).__name__)))
        list(new_ledger(tmp_path / "ledger", pipe).remove_each(pipe, make_eraser(method, **settings), requests))
    assert read == ["CLIPTextModel", "CLIPTextModelWithProjection"]


def test_the_checks_of_a_late_removal_cost_what_those_of_an_early_one_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, counted = tiny.sd1(), Counter[str]()

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def counting(*args: Any, **options: Any) -> Any:
            counted[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, counting)

    for module in (checks, standing):
        count(module, "normalized")
        count(module, "recorded_eraser")
    count(checks, "clash_of")
    ledger, costs = new_ledger(tmp_path, pipe), []
    requests = [(Concept(target=f"name {i}", anchor="sky", aliases=(f"alias {i}",)),) for i in range(6)]
    for _ in ledger.remove_each(pipe, make_eraser("uce"), requests, distinct=True):
        costs.append(dict(counted))
        counted.clear()
    assert costs[1]["recorded_eraser"] == 2, "its own, and that of the one before it"
    assert costs[1] == costs[-1]
    assert ledger.removed_names["alias 4"] == "005"


def test_what_was_undone_or_written_elsewhere_no_longer_counts_or_does(tmp_path: Path) -> None:
    pipe, eraser = tiny.sd1(), make_eraser("uce")
    ledger = new_ledger(tmp_path, pipe)
    ledger.remove(pipe, eraser, [Concept(target="cat")])
    other = Ledger.open(tmp_path)
    other.remove(pipe, eraser, [Concept(target="dog")])
    with pytest.raises(AlreadyRemovedError, match="'dog', which entry 002"):
        ledger.remove(pipe, eraser, [Concept(target="dog")], distinct=True)
    other.undo("001")
    assert ledger.remove(pipe, eraser, [Concept(target="cat")], distinct=True).id == "003"
    assert ledger.removed_names == {"dog": "002", "cat": "003"}
