"""The gain of a piece: the arms differ in it alone, the verdict is that of the numbers, and a killed run goes on."""

import argparse
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from erasure import tinyworld
from erasure.errors import InputError
from erasure.runs.verdicts import read_verdicts
from experiments import ablate
from experiments.ablate import ARMS, FAR, NEAR, TARGETS, VERDICTS, compared, experiment, verdict_line, verdict_table
from tests.eval import world

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ["eraser.steps=1", "eraser.sample_steps=2", "eraser.trajectory_uses=1", "measure.steps=1"]


def result(near: float, seconds: float = 10.0, worst: float = 0.5) -> dict[str, Any]:
    shares = {**dict.fromkeys(NEAR, near), **dict.fromkeys(FAR, 1.0), **dict.fromkeys(TARGETS, 0.0)}
    return {"shares": {**shares, FAR[0]: worst}, "seconds": seconds}


def test_the_verdict_is_the_gain_of_near_names_with_the_time_that_it_took() -> None:
    results = {
        f"{arm}-{order}-{seed}": result(0.6 + 0.1 * (arm == "with"), 12.0 if arm == "with" else 10.0)
        for arm in ARMS
        for order in "ab"
        for seed in (0, 1)
    }
    comparison = compared(results, ["a", "b"], [0, 1])
    assert comparison["verdict"] == "near +0.100 [0.100, 0.100], 1.2 x time, n = 4"
    assert comparison["differences"]["near"]["n"] == 4 * len(NEAR)
    assert comparison["differences"]["far"]["value"] == 0.0
    assert comparison["worst"] == {"without": 0.5, "with": 0.5}
    assert verdict_line(-0.02, -0.05, 0.01, 1.0, 6) == "near -0.020 [-0.050, 0.010], 1.0 x time, n = 6"


def test_verdicts_are_those_of_the_committed_records(tmp_path: Path) -> None:
    assert VERDICTS.read_text(encoding="utf-8") == verdict_table(ablate.RESULTS), "run: ablate --verdicts"
    (tmp_path / "x").mkdir()
    line = "near +0.100 [0.050, 0.150], 1.2 x time, n = 6"
    (tmp_path / "x" / "run.json").write_text(json.dumps({"seam": "term", "piece": "healing", "verdict": line}))
    (tmp_path / "verdicts.csv").write_text(verdict_table(tmp_path))
    assert read_verdicts(tmp_path / "verdicts.csv") == {("term", "healing"): line}


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings = {
        "seam": "finish",
        "piece": "keep-top",
        "config": CONFIGS / "esd" / "sequence-tinyworld.yaml",
        "set": ['eraser.shape.finish=[{"name": "keep-top", "share": 0.5}]'],
        "both": QUICK,
        "orders": ["a"],
        "seeds": [0],
        "stop_at": 0.95,
        "images": 1,
        "work": folder / "work",
        "out": folder / "out",
    }
    return argparse.Namespace(**settings | changes)


def test_the_arms_differ_in_the_piece_alone_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda: deepcopy(world.pipeline()))
    record = experiment(options(tmp_path))
    without, piece = (record["config"][arm]["eraser"] for arm in ARMS)
    assert without["shape"]["finish"] == []
    assert piece["shape"]["finish"] == [{"name": "keep-top", "share": 0.5}]
    assert {**without, "shape": 0} == {**piece, "shape": 0}
    assert without["shape"]["until"]["efficacy"] == 0.95
    assert set(record["sequences"]) == {"without-a-0", "with-a-0"}
    monkeypatch.setattr(ablate, "Removals", None)  # nothing is left to remove
    assert experiment(options(tmp_path))["sequences"] == record["sequences"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--set: expected the settings that switch the piece on"):
        experiment(options(tmp_path, set=[]))
    with pytest.raises(InputError, match=r"config: expected a value, got none"):
        experiment(options(tmp_path, config=None))
