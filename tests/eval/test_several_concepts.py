"""Two objects in one prompt, under each guidance and with one of them removed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erasure import tinyworld
from erasure.tinyworld import vocabulary
from experiments import several_concepts
from experiments.several_concepts import PLAIN, guidances, made, main, pair_asks


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> dict[str, Any]:
    # Few steps: what is tested is the bookkeeping.
    monkeypatch.setattr(several_concepts, "SAMPLER", replace(several_concepts.SAMPLER, steps=5))
    arguments = [*options, "--work", str(folder / "work"), "--out", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["several_concepts", *arguments])
    main()
    assert (folder / "out" / "pictures.png").is_file() or "--sweep" in options
    written = (folder / "out" / "run.json").read_text()
    assert str(folder) not in written  # a record that is committed names no place on a machine
    return json.loads(written)


def test_every_ordered_pair_is_asked_for_with_seeds_of_its_own() -> None:
    asks = pair_asks(4)
    n = len(vocabulary.OBJECTS)
    assert len(asks) == 4 * n * (n - 1) >= 4 * 500
    assert len({ask.seed for ask in asks}) == len(asks)
    assert {frozenset(ask.pair) for ask in asks if ask.held_out} == vocabulary.HELD_OUT_PAIRS
    assert not {ask.seed for ask in asks} & {ask.seed for ask in pair_asks(4, first=1_000_000, prompts=20)}
    for ask in asks[:50]:
        assert all(name in ask.prompt for name in ask.pair)


def test_each_arm_differs_from_the_others_and_plain_is_the_first() -> None:
    arms = guidances(20.0, 10.0)
    assert next(iter(arms)) == PLAIN
    assert arms[PLAIN] is None
    settings = {name: (type(arm).__name__, repr(arm)) for name, arm in arms.items()}
    assert len(set(settings.values())) == len(arms) == 5


def test_pictures_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, asks, told = tinyworld.load(), pair_asks(1, prompts=2), []
    first = made(pipe, asks, None, tmp_path, "plain", lambda *what: told.append(what))
    monkeypatch.setattr(several_concepts, "sample", None)
    assert np.array_equal(first, made(pipe, asks, None, tmp_path, "plain", lambda *what: told.append(what)))
    assert told == [("plain", 2, 2)] * 2


def test_the_experiment_reports_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_concepts, "_WATCHED", 1)
    record = run(monkeypatch, tmp_path, "--prompts", "4", "--seeds", "1")
    assert list(record["arms"]) == list(guidances(1.0, 1.0))
    for arm in record["arms"].values():
        assert arm["both"]["n"] == 4
        assert 0 <= arm["both"]["value"] + arm["neither"]["value"] <= 1
        assert len(arm["maps"]["overlap"]) == 5
        assert len(arm["maps"]["kept"]) == 4
        assert arm["frechet_distance"]["value"] > 0
    assert record["mcnemar"]["A-STAR against plain"]["n"] == 4


def test_removals_are_judged_where_both_were_drawn_and_outside_of_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(monkeypatch, tmp_path, "--localised", "--removals", "2", "--seeds", "1")
    arms = record["arms"]
    assert arms[PLAIN]["pixels_outside"] == 0
    assert arms["localised"]["pixels_outside"] < 0.1 * arms["a negative prompt"]["pixels_outside"]
    assert arms["localised"]["pixels_inside"] > 10 * arms["localised"]["pixels_outside"]
    assert record["n"] == 2
