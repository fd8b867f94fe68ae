"""The sweep of UCE's defaults: its rule, its tables, and going on where it ended."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from docs.tables.removals import uce_defaults as settings_table
from docs.tables.removals import uce_places as places_table
from erasure.eval.stats.scores import Rate
from erasure.profile import profile_of
from experiments import uce_defaults
from experiments.experiment import write_record
from experiments.uce_defaults import CELLS, CONCEPTS, PLACES, Trial, best, chosen, experiment


def predicted(left: float, moved: float, few: float = 0.0) -> dict[str, float]:
    moves = {"near": moved, "far": moved, "near_few": few, "far_few": few}
    return {"plain": left - 0.1, "held_out": left, **moves}


def imaged(plain: int, held_out: int, near: int, far: int, size: float = 1.0) -> dict[str, Any]:
    rates = {"plain": plain, "held_out": held_out, "near": near, "far": far}
    return {**{name: Rate(hits=hits, n=100).as_json() for name, hits in rates.items()}, "size": size}


def test_each_bound_on_the_move_names_the_setting_that_leaves_least() -> None:
    rows = [
        predicted(0.3, 1.0, 1.0),
        predicted(0.0, 1.1),
        predicted(0.0, 0.5, 1.2),
        predicted(0.1, 0.95, 1.05),
        predicted(0.2, 0.89),
        predicted(0.25, 0.1),
    ]
    assert best(rows) == [3, 4, 5]
    assert best(rows[:1]) == []


def test_the_weaker_efficacy_decides_among_those_that_keep_enough() -> None:
    former, equal = imaged(80, 80, 94, 97), [0.1, 0.1, 0.1, 0.1]
    assert chosen([former, imaged(99, 90, 95, 97), imaged(92, 92, 96, 98), imaged(99, 99, 94, 99)], equal) == 2
    assert chosen([former, imaged(90, 90, 95, 97, size=2.0), imaged(99, 90, 95, 97)], equal) == 2
    assert chosen([former, imaged(90, 90, 95, 97, size=2.0), imaged(99, 90, 95, 97)], [0.3, 0.1, 0.2]) == 1
    assert chosen([former, imaged(85, 85, 94, 97), imaged(99, 99, 93, 99)], equal) == 1
    assert chosen([former, imaged(99, 99, 93, 99)], equal) == 0


def test_no_reported_concept_and_no_reported_seed_takes_part() -> None:
    reported = {"cat", "neon", "gun", "church", "car", "Biscuit", "flower", "umbrella"}
    assert not reported & set(CONCEPTS)
    assert uce_defaults.SEED not in (0, 1)


def test_the_sweep_is_kept_and_tabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = Trial._planned
    monkeypatch.setattr(Trial, "_planned", lambda trial, *_: planned(trial, 1, 2))
    monkeypatch.setattr(uce_defaults, "CELLS", (CELLS[0][:1], CELLS[1][:1]))
    options = argparse.Namespace(steps=3, work=tmp_path / "work", out=tmp_path)
    record = experiment(options)
    nothing = record["diagnosis"][0]["exchanged"]
    assert set(nothing) == {"nothing", *PLACES, "the end of text and the states after it"}
    monkeypatch.setattr(Trial, "in_predictions", lambda *_: pytest.fail("was measured already"))
    assert experiment(options)["predictions"] == record["predictions"]
    (tmp_path / "results").mkdir()
    write_record(record, tmp_path / "results")
    table = settings_table("results/run.json", tmp_path)
    named = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:4]]
    assert [name.strip("*") for name in named] == [
        "former defaults",
        "anchor_scale=1.0, trailing=0.9, trailing_states=6",
    ]
    assert [name.startswith("**") for name in named].count(True) == 1
    assert len(places_table("results/run.json", tmp_path).splitlines()) >= 2 + len(nothing)


def test_as_many_probes_of_each_concept_are_plain_and_held_out() -> None:
    trial = object.__new__(Trial)
    trial._profile = profile_of("tinyworld")
    probes = [probe for probe in trial._planned(2, 4) if probe.role == "removed"]
    assert [(probe.name, probe.held_out) for probe in probes] == [
        (name, held_out) for name in CONCEPTS for held_out in (False, False, True, True)
    ]
