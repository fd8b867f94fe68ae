"""Which text states carry a concept: what is exchanged, and what is told."""

import sys
from pathlib import Path

import pytest
import torch

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.sampling import SamplingSettings
from experiments import text_states
from experiments.text_states import PARTS, mixture

PROMPTS, SAFE = ["a gun in the forest", "a photo of a knife"], ["a flower in the forest", "a photo of a flower"]
CONCEPTS = ["gun", "knife"]


def test_states_are_exchanged_where_it_is_said_and_nowhere_else() -> None:
    backbone = backbone_of(tinyworld.load())
    states, others = backbone.encode(PROMPTS), backbone.encode(SAFE)
    assert torch.equal(states.eot, others.eot)
    changed = {
        part: (mixture(states, others, CONCEPTS, exchanged).states == others.states).all(-1)
        & ~(states.states == others.states).all(-1)
        for part, exchanged in PARTS.items()
    }
    (gun,), end = states.word_positions(0, "gun"), int(states.eot[0])
    assert not changed["nothing"].any()
    assert changed["the concept's tokens"][0].nonzero().flatten().tolist() == [gun]
    assert changed["the first end of text"][0].nonzero().flatten().tolist() == [end]
    # A causal encoder says the same up to the word that differs.
    assert changed["all tokens of the sentence"][0].nonzero().flatten().tolist() == list(range(gun, end))
    tail = changed["end of text and all after it"][0].nonzero().flatten().tolist()
    assert tail == list(range(end, states.ids.shape[1]))


def test_where_all_is_exchanged_the_safe_one_is_drawn(tmp_path: Path) -> None:
    rows = text_states.measured(tinyworld.load(), 2, SamplingSettings(steps=10, guidance_scale=4.0), lambda *_: None)
    assert rows["nothing"]["concept"]["value"] > 0.5 > rows["nothing"]["safe"]["value"]
    both = rows["the concept's tokens, and from end of text on"]
    assert both["safe"]["value"] > 0.5 > both["concept"]["value"]


def test_the_command_writes_a_record_or_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_states, "measured", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["text_states", "--out", str(tmp_path / "out")])
    text_states.main()
    assert (tmp_path / "out" / "run.json").is_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["text_states", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit, match=r"^text_states: .*expected"):
        text_states.main()
