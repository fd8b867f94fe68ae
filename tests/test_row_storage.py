"""Rows on the disk: the same to the last bit, and what removals share there once."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erasure.closed_form.problem import Row, Rows
from erasure.closed_form.storage import fetched, packed, put_apart, unpacked, unpacked_first
from erasure.errors import InputError

DIM = 48
NAMES = ("", "cat", "dog", "Straße".casefold(), "a lamp")


def states(count: int, seed: int, *, single: bool = True) -> Tensor:
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.float().double() if single else drawn


def rows_of(anchors: list[str], kept: list[str], *, seed: int = 0, single: bool = True) -> Rows:
    targets = states(len(anchors), seed, single=single)
    goals, preserve = states(len(anchors), 1, single=single), states(len(kept), 2, single=single)
    return Rows.of(
        [
            Row(
                label="gun",
                site=f"{{}}|{at}",
                state=targets[at],
                weight=1 / (3 + at),
                anchor_label=anchor,
                anchor=goals[at],
                strength=1.3,
            )
            for at, anchor in enumerate(anchors)
        ],
        [
            Row(label=label, site=f"a {{}}|{at}", state=state, weight=0.1, anchor_label=label, anchor=state)
            for at, (label, state) in enumerate(zip(kept, preserve, strict=True))
        ],
        reg=0.5,
        dim=DIM,
    )


def equal(one: Rows, other: Rows) -> bool:
    pairs = [(getattr(one, item.name), getattr(other, item.name)) for item in fields(Rows)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


names = st.lists(st.sampled_from(NAMES), max_size=6)


def test_rows_of_several_text_streams_lie_beside_each_other() -> None:
    text, pooled = rows_of(["", "dog"], ["cat"]), replace(rows_of(["dog"], ["cat"], seed=5), space="pooled")
    tensors = {**packed(text), **packed(pooled)}
    assert equal(unpacked(tensors), text)
    assert equal(unpacked(tensors, "pooled"), pooled)


@settings(deadline=None, max_examples=30)
@given(anchors=names, kept=names, single=st.booleans())
def test_unpacked_rows_are_the_packed_ones_to_the_last_bit(anchors: list[str], kept: list[str], single: bool) -> None:
    rows = rows_of(anchors, kept, single=single)
    assert equal(unpacked(packed(rows)), rows)
    without = replace(rows, strengths=None)
    assert equal(unpacked(packed(without)), without)


def test_states_of_a_float32_encoder_take_no_more_than_float32() -> None:
    assert {tensor.dtype for tensor in packed(rows_of(["", "dog"], ["cat"])).values()} == {torch.float32, torch.uint8}


def test_rows_of_the_first_format_are_read() -> None:
    rows = rows_of(["", "dog"], ["cat"])
    columns = {item.name: getattr(rows, item.name) for item in fields(Rows) if item.name != "strengths"}
    tensors = {f"rows.{name}": value for name, value in columns.items() if isinstance(value, Tensor)}
    words = {name: list(value) if isinstance(value, tuple) else value for name, value in columns.items()}
    words = {name: value for name, value in words.items() if not isinstance(value, Tensor)}
    assert equal(unpacked_first(words, tensors), replace(rows, strengths=None))


def test_what_two_removals_share_is_stored_once(tmp_path: Path) -> None:
    kept = ["dog"] * 30 + ["cat"] * 30
    one, other = packed(rows_of([""] * 30, kept)), packed(rows_of([""] * 30, kept, seed=7))
    whole = [dict(one), dict(other)]
    hashes = [put_apart(tensors, tmp_path / "rows") for tensors in (one, other)]
    assert hashes[0] == hashes[1]
    assert len(list((tmp_path / "rows").iterdir())) == 3  # the anchor's, the dog's and the cat's
    for tensors, before, apart in zip((one, other), whole, hashes, strict=True):
        assert set(tensors) == {"rows.targets", "rows.words"}
        assert equal(unpacked({**tensors, **fetched(apart, tmp_path / "rows")}), unpacked(before))


def test_a_few_rows_are_not_worth_a_file(tmp_path: Path) -> None:
    tensors = packed(rows_of([""], ["dog"]))
    assert put_apart(tensors, tmp_path / "rows") == {}
    assert len(tensors) == 4
    assert not (tmp_path / "rows").exists()


def test_a_changed_or_missing_block_is_refused_and_mended_by_the_next_removal(tmp_path: Path) -> None:
    rows = rows_of([""], ["dog"] * 30)
    hashes = put_apart(packed(rows), tmp_path)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"!")
    with pytest.raises(InputError, match="It was changed") as caught:
        fetched(hashes, tmp_path)
    assert "\n" not in str(caught.value)
    assert put_apart(packed(rows), tmp_path) == hashes
    assert file.read_bytes() == content
    file.unlink()
    with pytest.raises(InputError, match="shares with others, got 'No such file"):
        fetched(hashes, tmp_path)
