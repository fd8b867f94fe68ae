"""The audits of methods: which rows there are, which golds fit, and one row from removal to record."""

import argparse
import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from erasure import tinyworld
from erasure.errors import InputError, UnknownNameError
from erasure.eval.protocols.audit.run import IMAGES
from erasure.profile import SamplingDefaults
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import apart, audits
from experiments.audits import CASES, MethodOnCase, experiment, fitting, methods, planned
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


def gold(folder: Path, *without: str) -> str:
    """Write the denoiser of an untrained model that was never taught some concepts."""
    unet = deepcopy(world.pipeline().unet)
    with torch.no_grad():
        next(unet.parameters()).mul_(0.5)
    unet.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps({"settings": {"without": without}}))
    return str(folder)


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


def test_a_gold_counts_for_what_it_was_never_taught(tmp_path: Path) -> None:
    for name, without in (("cat", ["cat"]), ("weapons", ["gun", "knife"]), ("plain", None)):
        (tmp_path / name).mkdir()
        if without is not None:
            (tmp_path / name / "recipe.json").write_text(json.dumps({"settings": {"without": without}}))
    cat, weapons, plain = (str(tmp_path / name) for name in ("cat", "weapons", "plain"))
    assert fitting([cat, weapons, plain], ["cat"]) == [cat, plain]
    assert fitting([cat, weapons], ["gun", "bomb"]) == [weapons]
    assert fitting([], ["cat"]) == []
    with pytest.raises(InputError, match=r"--gold: expected a model that was never taught 'neon', got .*cat.* Add one"):
        fitting([cat, weapons], ["neon"])
    with pytest.raises(InputError, match=r"--gold: expected the folder of a denoiser, got 'nowhere'\. Train it"):
        fitting(["nowhere"], ["cat"])


def test_a_default_gold_has_to_be_there_for_what_it_was_never_taught_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "golds" / "cat").mkdir(parents=True)
    assert fitting(None, ["cat"]) == [str(Path("results/golds/cat"))]
    with pytest.raises(InputError, match=r"--gold: expected the folder of a denoiser, got 'results.golds.weapons'"):
        fitting(None, ["gun"])
    with pytest.raises(InputError, match="--gold: expected the folder of a denoiser, got 'weapons'"):
        fitting(["results/golds/cat", "weapons"], ["cat"])


def test_a_row_has_what_tables_need_and_a_killed_one_goes_on(tmp_path: Path, untrained: None) -> None:
    row = MethodOnCase(method="uce-rewrite", case="cat")
    asked_for = options(tmp_path, gold=[gold(tmp_path / "no-cat", "cat")])
    record = experiment(row, asked_for, lambda _: None)
    assert (record["method"], record["case"], record["suite"]) == ("uce-rewrite", "cat", "quick")
    assert record["config"]["eraser"]["rows"] == "last-subject"
    assert record["options"]["gold"] == ["no-cat"]
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
    for row, changes in (
        (MethodOnCase(method="uce", case="cat"), {}),
        (MethodOnCase(method="uce", case="neon"), {"suite": ""}),
    ):
        row.folder(tmp_path).mkdir(parents=True)
        record = {"options": {}, **row.facts(options(tmp_path)), **changes}
        (row.folder(tmp_path) / "run.json").write_text(json.dumps(record))
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
