"""A list of removals as one piece of work: the entries of single removals, prompts read once."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure import Concept, Ledger, make_eraser
from erasure.backbones import backbone_of
from erasure.errors import AlreadyRemovedError, InputError
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


@pytest.mark.parametrize("method", ["uce", "speed", "cfe", "sld"])
def test_entries_of_a_list_are_those_of_single_removals_to_the_last_bit(tmp_path: Path, method: str) -> None:
    pipe, eraser = tiny.sd1(), make_eraser(method)
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


def test_the_encoder_reads_a_list_together_and_each_beginning_once(tmp_path: Path, monkeypatch: Any) -> None:
    pipe = tiny.sd1(vocabulary="clip")
    read: list[int] = []
    whole = new_ledger(tmp_path / "whole", pipe)
    with pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel())):
        list(whole.remove_each(pipe, make_eraser("uce"), REQUESTS))
        together, calls = sum(read), len(read)
        read.clear()
        for concepts in REQUESTS:
            new_ledger(tmp_path / concepts[0].target, pipe).remove(pipe, make_eraser("uce"), concepts)
    assert calls <= together // 1000 + 1
    assert together < sum(read)


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


def test_a_model_on_the_disk_has_each_encoder_read_once_for_a_list(tmp_path: Path) -> None:
    tiny.sdxl().save_pretrained(tmp_path / "model")
    pipe = load_stored(str(tmp_path / "model"))
    read: list[str] = []
    with ExitStack() as stack:
        for encoder in (pipe.text_encoder, pipe.text_encoder_2):
            stack.enter_context(encoder.register_forward_pre_hook(lambda module, _: read.append(type(module).__name__)))
        uce = make_eraser("uce", rows="last-subject")
        list(new_ledger(tmp_path / "ledger", pipe).remove_each(pipe, uce, REQUESTS))
    assert read == ["CLIPTextModel", "CLIPTextModelWithProjection"]
