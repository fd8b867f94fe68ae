"""Damaged files of edits, and edits that are not finite: one line that names the file, and nothing is recorded."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from erasure import UCE, Concept, Ledger, erase
from erasure.backbones import backbone_of
from erasure.edits import DenseChange, Edit, EditMetadata, LowRankChange, WeightEdit
from erasure.edits.tokens import NewToken
from erasure.errors import ErasureError, InputError, LedgerError
from tests import tiny

PIPE = tiny.sd1()
CONV = "unet.conv_in.weight"
VALUES: tuple[Any, ...] = (None, 5, -1, "x", [], {}, True, 1.5, ["a"], {"a": 1}, float("nan"), float("inf"), 1e39)


def parts(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def saved(folder: Path, edit: WeightEdit) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Return description and tensors of an edit's file, and its format."""
    header, tensors = parts(edit.save(folder / "whole.safetensors"))
    return json.loads(header["edit"]), tensors, header["format"]


def refusal(path: Path) -> str | None:
    """Return the error of a file that is loaded, applied and saved again; None without one."""
    try:
        edit = Edit.load(path)
        with edit.applied_to(PIPE, check=False):
            pass
        edit.save(path.with_name("again.safetensors"))
    except ErasureError as error:
        return str(error)
    return None


def places(value: object, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a JSON document."""
    if before:
        yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*before, key))


def damaged(description: dict[str, Any], place: tuple[Any, ...], value: object) -> dict[str, Any]:
    """Return a description with one value replaced, or taken out where the new one is `...`."""
    changed: Any = copy.deepcopy(description)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return changed


@pytest.mark.parametrize("factor", [1.0, 0.5])  # rows alone, and a map
def test_any_damage_of_a_header_is_one_line_that_names_the_file(tmp_path: Path, factor: float) -> None:
    description, tensors, name = saved(tmp_path, erase(PIPE, "cat", preserve=["dog"]).scaled(factor))
    path, drawn, refused = tmp_path / "damaged.safetensors", random.Random(0), 0
    every = list(places(description))
    for _ in range(60):
        changed = damaged(description, drawn.choice(every), drawn.choice((*VALUES, ..., ...)))
        save_file(tensors, path, metadata={"format": name, "edit": json.dumps(changed)})
        message = refusal(path)
        refused += message is not None
        assert message is None or (str(path) in message and "\n" not in message)
    assert refused > 30


@pytest.mark.parametrize("text", [None, "", "{", "[]", "5", "[" * 100_000])
def test_a_header_without_its_description_is_refused(tmp_path: Path, text: str | None) -> None:
    _, tensors, name = saved(tmp_path, erase(PIPE, "cat"))
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, metadata={"format": name} | ({} if text is None else {"edit": text}))
    assert "expected a header with 'rows', got 'nothing'" in (refusal(path) or "")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("metadata", "method"), 5, "metadata.method"),
        (("metadata", "unknown"), 5, "metadata.unknown"),
        (("metadata", "concepts", 0, "target"), 5, "metadata.concepts.0.target"),
        (("metadata", "concepts", 0, "unknown"), 5, "unknown"),
        (("changes", next(iter(backbone_of(PIPE).sites(reads="text"))), "kind"), "x", "known kind of change, got 'x'"),
        (("rows",), ..., "'rows', got 'nothing'"),
        (("rows",), False, "expected the rows that a change solves, got none"),
    ],
)
def test_damage_is_said_by_what_is_wrong(tmp_path: Path, place: tuple[Any, ...], value: object, expected: str) -> None:
    description, tensors, name = saved(tmp_path, erase(PIPE, "cat"))
    path = tmp_path / "damaged.safetensors"
    save_file(tensors, path, metadata={"format": name, "edit": json.dumps(damaged(description, place, value))})
    message = refusal(path)
    assert message is not None
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_damaged_words_and_missing_states_of_rows_are_refused(tmp_path: Path) -> None:
    header, tensors = parts(erase(PIPE, "cat", preserve=["dog"]).save(tmp_path / "whole.safetensors"))
    words, path = tensors["rows.words"], tmp_path / "damaged.safetensors"
    changed = words.clone()
    changed[len(words) // 2] ^= 255
    without = {name: tensor for name, tensor in tensors.items() if name != "rows.preserve.0"}
    for damage in (
        {**tensors, "rows.words": words[:-9]},
        {**tensors, "rows.words": changed},
        {**tensors, "rows.targets": tensors["rows.targets"][1:]},
        without,
    ):
        save_file(damage, path, metadata=header)
        message = refusal(path)
        assert message is not None
        assert "expected the rows of an edit" in message


def test_a_ledger_names_the_damaged_file_and_adds_none(tmp_path: Path) -> None:
    ledger = Ledger.open_or_create(tmp_path, PIPE, "model")
    with pytest.raises(InputError, match="finite"):
        ledger.remove(PIPE, UCE(strength=1e30), [Concept(target="cat")])
    assert not Ledger.open(tmp_path).entries
    assert not list((tmp_path / "edits").iterdir())
    entry = ledger.remove(PIPE, UCE(), [Concept(target="cat")])
    (tmp_path / entry.file).write_bytes(b"")
    assert [entry.file in problem for problem in ledger.verify(PIPE)] == [True]
    with pytest.raises(LedgerError):
        ledger.edit()
    # Nothing is added on top of what cannot be read, by a fit or from a file, until it is back or undone.
    for addition in (
        lambda: Ledger.open(tmp_path).remove(PIPE, UCE(), [Concept(target="dog")]),
        lambda: Ledger.open(tmp_path).add(erase(PIPE, "dog")),
    ):
        with pytest.raises(LedgerError, match=f"{entry.file}: .* Put it back from a copy, or undo 001"):
            addition()
    assert len(Ledger.open(tmp_path).entries) == 1
    Ledger.open(tmp_path).undo("001")
    assert Ledger.open(tmp_path).remove(PIPE, UCE(), [Concept(target="cat")]).id == "002"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_no_edit_has_a_weight_that_is_not_finite(value: float) -> None:
    metadata = EditMetadata.of("test", {}, backbone_of(PIPE), [Concept(target="cat")], 0)
    weight = PIPE.unet.conv_in.weight.detach()
    bad = torch.zeros_like(weight)
    bad[0, 0, 0, 0] = value
    factor = torch.full((len(weight), 1), value)
    for change in (DenseChange(delta=bad), LowRankChange(up=factor, down=torch.ones(1, weight[0].numel()))):
        with pytest.raises(InputError, match=f"test: expected a change of '{CONV}' that is finite"):
            WeightEdit(changes={CONV: change}, metadata=metadata)
    with pytest.raises(InputError, match="expected a change of"):
        WeightEdit(changes={CONV: DenseChange(delta=torch.ones_like(weight))}, metadata=metadata).scaled(1e38)
    if value != 1e38:
        token = NewToken(text="<cat>", rows={"text_encoder": torch.full((tiny.WIDTH,), value)})
        with pytest.raises(InputError, match="token '<cat>': expected finite numbers"):
            WeightEdit(changes={}, metadata=metadata, tokens=(token,))


def test_an_edit_that_overflows_the_model_s_precision_is_refused() -> None:
    pipe = tiny.sd1()
    metadata = EditMetadata.of("test", {}, backbone_of(pipe), [Concept(target="cat")], 0)
    pipe.to(torch.float16)
    pipe.unet.conv_in.weight.data[0, 0, 0, 0] = 60000
    large = torch.zeros(pipe.unet.conv_in.weight.shape)
    large[0, 0, 0, 0] = 60000
    edit = WeightEdit(changes={CONV: DenseChange(delta=large)}, metadata=metadata)
    with pytest.raises(InputError, match=r"as float16\. Check the model's weights, or load it in float32"):  # noqa: SIM117
        with edit.applied_to(pipe, check=False):
            pass


def test_a_setting_that_is_no_number_is_refused() -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"uce\.strength: expected a finite number, got (inf|nan)"):
            UCE(strength=value)
