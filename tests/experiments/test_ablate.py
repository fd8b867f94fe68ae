"""The gain of a piece: the arms differ in it alone, the verdict is that of the numbers, and a killed run goes on."""

import argparse
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from docs.tables.pieces import LOOP
from erasure import tinyworld
from erasure.cli.setup import extension_points
from erasure.errors import InputError, UnknownNameError
from erasure.eval.stats.paired import Difference
from erasure.runs.verdicts import SEAMS, read_verdicts
from erasure.tinyworld import vocabulary
from experiments import ablate
from experiments.ablate import (
    ARMS,
    FAR,
    NEAR,
    TARGETS,
    VERDICTS,
    Piece,
    compared,
    experiment,
    measurable,
    over_runs,
    pieces,
    verdict_line,
    verdict_table,
)
from tests.eval import world


def result(near: float, seconds: float = 10.0, worst: float = 0.5) -> dict[str, Any]:
    shares = {**dict.fromkeys(NEAR, near), **dict.fromkeys(FAR, 1.0), **dict.fromkeys(TARGETS, 0.0)}
    return {"shares": {**shares, FAR[0]: worst}, "seconds": seconds}


def test_the_verdict_is_the_gain_of_near_names_with_the_time_that_it_took() -> None:
    results = {
        f"{arm}-{order}-{seed}": result(0.6 + 0.1 * (arm == "with") + 0.05 * seed, 12.0 if arm == "with" else 10.0)
        for arm in ARMS
        for order in "ab"
        for seed in (0, 1)
    }
    comparison = compared(results, ["a", "b"], [0, 1])
    assert comparison["verdict"] == "gone +0.000, near +0.100 [0.100, 0.100], null 0.050, 1.2 x time, n = 4"
    assert comparison["differences"]["near"]["n"] == 4
    assert comparison["null"] == pytest.approx({"a, 0 to 1": 0.05, "b, 0 to 1": 0.05})
    assert comparison["differences"]["far"]["value"] == 0.0
    assert comparison["worst"] == {"without": 0.5, "with": 0.5}
    near = Difference(value=-0.02, n=6, low=-0.05, high=0.01, confidence=0.95)
    assert verdict_line(0.01, near, [], 1.0) == "gone +0.010, near -0.020 [-0.050, 0.010], null –, 1.0 x time, n = 6"


def test_the_interval_has_the_spread_from_fit_to_fit() -> None:
    spread = over_runs([0.0, 0.2, 0.0, 0.2])
    assert (spread.value, spread.n) == (pytest.approx(0.1), 4)
    half = 3.182 * (0.04 / 3) ** 0.5 / 2  # Student's t of 3 degrees of freedom
    assert (spread.low, spread.high) == (pytest.approx(0.1 - half, abs=1e-3), pytest.approx(0.1 + half, abs=1e-3))
    alone = over_runs([0.1])
    assert (alone.low, alone.high) == (-1.0, 1.0), "one run says nothing of another"


def test_near_names_are_siblings_of_what_is_removed() -> None:
    near = [{target for target in TARGETS if name in vocabulary.siblings(target)} for name in NEAR]
    assert all(near), "each is the sibling of a target"
    assert set().union(*near) == set(TARGETS), "each target has one"
    assert {"dog", "knife", "rocket", "guitar"} < set(NEAR)
    assert not {*TARGETS, *FAR, "Mittens"} & set(NEAR), "Mittens is a cat"
    assert not any(name in vocabulary.siblings(target) for target in TARGETS for name in FAR)


def test_verdicts_are_those_of_the_committed_records(tmp_path: Path) -> None:
    assert VERDICTS.read_text(encoding="utf-8") == verdict_table(ablate.RESULTS), "run: ablate --verdicts"
    folder = tmp_path / "term" / "healing"
    folder.mkdir(parents=True)
    line = "gone +0.000, near +0.100 [0.050, 0.150], 1.2 x time, n = 6"
    (folder / "run.json").write_text(json.dumps({"seam": "term", "piece": "healing", "verdict": line}))
    (tmp_path / "verdicts.csv").write_text(verdict_table(tmp_path))
    verdicts = read_verdicts(tmp_path / "verdicts.csv")
    assert verdicts["term", "healing"] == line
    assert verdicts["selector", "cka"].startswith("not measured: chooses a layer")


def test_every_piece_has_an_arm_with_it_or_a_reason() -> None:
    known = {(seam, name) for seam in SEAMS[:-1] for name in extension_points()[seam].names()}
    known |= {("loop", name) for name in LOOP}
    listed = pieces()
    assert {(piece.seam, piece.name) for piece in listed.values()} == known
    for piece in listed.values():
        if not piece.reason:
            without, with_it = (piece.run(arm, 0.95).as_json()["eraser"] for arm in ARMS)
            assert without != with_it, piece.label


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings = {"piece": [], "orders": ["a"], "seeds": [0], "stop_at": 0.95, "images": 1, "work": folder / "work"}
    return argparse.Namespace(**settings | changes)


def quick(settings: Mapping[str, Any]) -> Piece:
    both = {"eraser.steps": 1, "eraser.sample_steps": 2, "eraser.trajectory_uses": 1, "measure.steps": 1}
    return Piece(seam="finish", name="keep-top", config="esd/sequence-tinyworld.yaml", both=both, settings=settings)


def test_the_arms_differ_in_the_piece_alone_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    keep_top = quick({"eraser.shape.finish": [{"name": "keep-top", "share": 0.5}]})
    record = experiment(keep_top, options(tmp_path), lambda _: None)
    without, piece = (record["config"][arm]["eraser"] for arm in ARMS)
    assert without["shape"]["finish"] == []
    assert piece["shape"]["finish"] == [{"name": "keep-top", "share": 0.5}]
    assert {**without, "shape": 0} == {**piece, "shape": 0}
    assert without["shape"]["until"]["efficacy"] == 0.95
    assert set(record["sequences"]) == {"without-a-0", "with-a-0"}
    monkeypatch.setattr(ablate, "Removals", None)  # nothing is left to remove
    assert experiment(keep_top, options(tmp_path), lambda _: None)["sequences"] == record["sequences"]
    with pytest.raises(TypeError):  # another piece shares the arm without, and its own is to be made
        experiment(quick({"eraser.shape.every": 2}), options(tmp_path), lambda _: None)
    assert len(list((tmp_path / "work").glob("*/result.json"))) == 2


def test_a_piece_that_cannot_be_measured_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown piece 'term/healng'. Did you mean 'term/healing'"):
        measurable(argparse.Namespace(piece=["term/healng"]))
    with pytest.raises(InputError, match="selector/cka: expected a piece with a verdict, got one that chooses a layer"):
        measurable(argparse.Namespace(piece=["selector/cka"]))
    assert len(measurable(argparse.Namespace(piece=[]))) == sum(not piece.reason for piece in pieces().values())
