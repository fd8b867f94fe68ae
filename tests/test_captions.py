"""Ordinary captions and their statistics."""

from pathlib import Path

import pytest
import torch

from erasure.backbones import Backbone, backbone_of
from erasure.closed_form.caption_statistics import ordinary_captions, read_captions, statistics
from erasure.concept import Concept
from erasure.errors import InputError
from tests.tiny import FAMILIES

CAPTIONS = [f"a photo of thing number {at}" for at in range(150)]


@pytest.fixture(params=sorted(FAMILIES))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbone_of(FAMILIES[request.param]())


def test_the_sum_is_that_of_all_states_at_once(backbone: Backbone) -> None:
    found = statistics(backbone, CAPTIONS)
    states = backbone.encode(CAPTIONS)
    rows = states.states.flatten(0, 1).double()
    assert torch.allclose(found.states, rows.T @ rows, rtol=1e-9)
    assert (found.captions, found.tokens) == (150, 150 * 77)
    assert (found.pooled is None) == (states.pooled is None)
    if found.pooled is not None and states.pooled is not None:
        assert torch.allclose(found.pooled, states.pooled.double().T @ states.pooled.double(), rtol=1e-9)


def test_they_are_computed_once(backbone: Backbone, tmp_path: Path) -> None:
    reads: list[int] = []

    def captions() -> list[str]:
        reads.append(1)
        return CAPTIONS[:70]

    first = statistics(backbone, captions, folder=tmp_path)
    again = statistics(backbone, captions, folder=tmp_path)
    assert torch.equal(first.states, again.states)
    assert len(reads) == 3  # the second time only to see that they are the same
    assert statistics(backbone, CAPTIONS[:71], folder=tmp_path).id != first.id
    assert len(list(tmp_path.iterdir())) == 2


def test_a_long_stream_is_read_a_batch_at_a_time() -> None:
    backbone = backbone_of(FAMILIES["sd1"]())
    most, reading = 0, 0

    def captions() -> object:
        nonlocal reading
        for at in range(300):
            reading = at
            yield CAPTIONS[at % len(CAPTIONS)]

    encode = backbone.encode

    class Watched(type(backbone)):  # type: ignore[misc]
        def encode(self, prompts, *, trailing=True):
            nonlocal most
            most = max(most, len(prompts))
            return encode(prompts, trailing=trailing)

    statistics(Watched(backbone.pipe), captions)  # type: ignore[arg-type]
    assert reading == 299
    assert most <= 64


def test_ordinary_captions_speak_of_what_stays_and_of_nothing_removed() -> None:
    gun = Concept(target="gun", kind="unsafe", preserve=("hammer", "house"), aliases=("pistol",))
    found = ordinary_captions([gun, Concept(target="house")])
    assert any("hammer" in caption for caption in found)
    assert not [caption for caption in found for word in ("gun", "pistol", "house") if word in caption.split()]
    assert len(set(found)) == len(found) > 300


def test_captions_are_read_from_lines_and_from_a_table(tmp_path: Path) -> None:
    lines, table = tmp_path / "captions.txt", tmp_path / "captions.csv"
    lines.write_text("a dog\n\n a cat \n", encoding="utf-8")
    table.write_text('id,Caption\n1,"a dog, big"\n2,Null\n3,\n', encoding="utf-8")
    assert list(read_captions(lines)) == ["a dog", "a cat"]
    assert list(read_captions(table)) == ["a dog, big", "Null"]
    table.write_text("id,words\n1,x\n", encoding="utf-8")
    for path, message in ((table, "expected a column caption or prompt"), (tmp_path / "none", "expected a file")):
        with pytest.raises(InputError, match=message):
            list(read_captions(path))
    lines.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="expected at least one"):
        statistics(backbone_of(FAMILIES["sd1"]()), lambda: read_captions(lines))
