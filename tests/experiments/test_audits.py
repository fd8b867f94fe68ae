"""The audits of methods: which rows there are, and one row from removal to record."""

import argparse
import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from erasure import tinyworld
from erasure.errors import UnknownNameError
from erasure.eval.protocols.audit.run import IMAGES
from erasure.profile import SamplingDefaults
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import apart, audits
from experiments.audits import CASES, MethodOnCase, experiment, methods, planned
from tests.eval import world


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=1, guidance_scale=2.0))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(IMAGES, "quick", (1, 1))


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "method": [],
        "concept": list(CASES),
        "gold": [],
        "suite": "quick",
        "probes": ["plain"],
        "work": folder / "work",
        "out": folder / "out",
    }
    return argparse.Namespace(**settings | changes)


def test_every_method_removes_the_same_concepts() -> None:
    for case in ("cat", "weapons"):
        runs = {method: MethodOnCase(method=method, case=case).run() for method in methods()}
        assert len({run.concepts for run in runs.values()}) == 1, case
    assert [concept.target for concept in runs["trce"].concepts] == ["gun", "knife", "bomb"]
    assert {run.eraser.name for run in runs.values()} >= {"uce", "esd", "duge", "trce", "localised", "negative-prompt"}
    assert len({json.dumps(run.as_json()["eraser"]) for run in runs.values()}) == len(runs)


def test_rows_go_concept_by_concept(tmp_path: Path) -> None:
    rows = [(row.method, row.case) for row in planned(options(tmp_path, method=["esd", "uce"], concept=["cat", "gun"]))]
    assert rows == [("esd", "cat"), ("uce", "cat"), ("esd", "gun"), ("uce", "gun")]
    assert len(planned(options(tmp_path))) == len(methods()) * len(CASES)
    with pytest.raises(UnknownNameError, match=r"Unknown method 'uce-publishd'\. Did you mean 'uce-published'"):
        planned(options(tmp_path, method=["uce-publishd"]))


def test_a_row_has_what_tables_need_and_a_killed_one_goes_on(tmp_path: Path, untrained: None) -> None:
    row = MethodOnCase(method="uce-rewrite", case="cat")
    asked_for = options(tmp_path, gold=[world.gold(tmp_path / "no-cat", "cat")])
    record = experiment(row, asked_for, lambda _: None)
    assert (record["method"], record["case"], record["suite"]) == ("uce-rewrite", "cat", "quick")
    assert record["config"]["eraser"]["rows"] == "last-subject"
    assert record["options"]["gold"] == list(record["golds"]) == ["no-cat"]
    [(concept, audit)] = record["concepts"].items()
    assert concept == "cat"
    assert audit["verdict"]
    assert audit["gold"] == "no-cat"
    assert set(audit["kept"]) == {"erased", "original", "gold"}
    plain = audit["probes"]["plain"]
    assert (plain["status"], plain["access"], plain["effort"]) == ("measured", "prompt", False)
    assert set(plain["seconds"]) == set(record["audit_seconds"]) == {"erased", "original", "gold"}
    assert str(tmp_path) not in json.dumps(record)
    assert "png" not in json.dumps(record)
    again = experiment(row, asked_for, lambda _: None)
    assert again["concepts"] == record["concepts"], "seconds too: nothing was measured again"


def test_rows_that_are_missing_are_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uce" / "cat").mkdir(parents=True)
    facts = MethodOnCase(method="uce", case="cat").facts(options(tmp_path))
    (tmp_path / "uce" / "cat" / "run.json").write_text(json.dumps({"options": {}, **facts}))
    commands: list[list[str]] = []

    class Failed:
        returncode = 1

    monkeypatch.setattr(apart.subprocess, "run", lambda command, **_: commands.append(command) or Failed())
    further = ["--gold", "--suite", "quick", "--out", str(tmp_path)]
    arguments = ["--method", "uce", "esd", "--concept", "cat", "neon", *further]
    monkeypatch.setattr(sys, "argv", ["audits", *arguments])
    with pytest.raises(SystemExit) as ended:
        audits.main()
    assert ended.value.code == 1
    rows = [("esd", "cat"), ("uce", "neon"), ("esd", "neon")]
    assert [command[2:] for command in commands] == [
        ["experiments.audits", "--method", method, "--concept", case, *further] for method, case in rows
    ]
