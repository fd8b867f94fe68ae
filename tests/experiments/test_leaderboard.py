"""The leaderboard: which rows there are, one row from removal to audit, going on where it ended, and its tables."""

import argparse
import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erasure import tinyworld
from erasure.errors import InputError, UnknownNameError
from erasure.eval.protocols.audit.record import Judged
from erasure.eval.protocols.audit.results import ConceptAudit, ProbeResult
from erasure.eval.protocols.audit.rows import ERASED, GOLD, NOVEL, ORIGINAL, PLAIN
from erasure.eval.protocols.audit.run import IMAGES
from erasure.profile import SamplingDefaults
from erasure.runs.budgets import eraser_of_budget
from erasure.runs.schema import parse
from erasure.tinyworld import models
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import apart, leaderboard
from experiments.experiment import folder_of
from experiments.leaderboard import CASES, PROBES_OF_ROWS, Row, audit_record, candidate_of, experiment, planned
from tests.eval import world


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=1, guidance_scale=2.0))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(IMAGES, "quick", (1, 1))
    monkeypatch.setattr(leaderboard, "JOINT", 2)


def swept(folder: Path, method: str, chosen: str | None, seconds: dict[str, float | None], **settings: Any) -> None:
    rows = [{"name": name, "settings": settings, "cpu_seconds": each} for name, each in seconds.items()]
    (folder / "sweep" / method).mkdir(parents=True)
    record = {"method": method, "chosen": chosen, "candidates": rows}
    (folder / "sweep" / method / "run.json").write_text(json.dumps(record))


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "method": [],
        "concept": [],
        "settings": ["chosen", "published"],
        "model": "tinyworld",
        "images": 1,
        "audited": ["cat"],
        "probes": ["plain"],
        "gold": [],
        "sweep": folder / "sweep",
        "work": folder / "work",
        "out": folder / "out",
    }
    return argparse.Namespace(**settings | changes)


def test_each_method_has_rows_of_its_chosen_and_of_its_published_settings(tmp_path: Path) -> None:
    swept(tmp_path, "esd", "tiny", {"published": None, "tiny": 90.0})
    swept(tmp_path, "uce", "default", {"published": 1.0, "default": 1.0})
    swept(tmp_path, "spm", "published", {"published": 31.0})
    rows = [(row.method, row.settings) for row in planned(options(tmp_path, concept=["cat"]))]
    assert rows == [("uce", "chosen"), ("esd", "chosen"), ("spm", "chosen"), ("uce", "published")]
    cases = {method: {row.case for row in planned(options(tmp_path, method=[method]))} for method in ("uce", "esd")}
    assert cases == {"uce": set(CASES), "esd": set(CASES) - {"eight"}}
    assert not planned(options(tmp_path, method=["esd"], concept=["eight"]))
    swept(tmp_path, "cfe", None, {"published": 1.0, "default": None})
    rows = planned(options(tmp_path, method=["cfe"], concept=["cat"]))
    assert [row.settings for row in rows] == ["published"]
    with pytest.raises(InputError, match=r"expected the settings that the sweep chose, got no file\. Run .+ oce"):
        planned(options(tmp_path, method=["oce"]))
    with pytest.raises(UnknownNameError, match=r"Unknown method 'oec'\. Did you mean 'oce'"):
        planned(options(tmp_path, method=["oec"]))


def test_the_budget_of_minutes_has_rows_without_a_sweep(tmp_path: Path) -> None:
    rows = planned(options(tmp_path, settings=["minutes"]))
    assert {(row.method, row.settings) for row in rows} == {("stack", "minutes")}
    assert {row.case for row in rows} == set(CASES) - {"eight"}
    assert not planned(options(tmp_path, settings=["minutes"], method=["uce"]))
    [row] = planned(options(tmp_path, settings=["minutes"], method=["stack"], concept=["eight"]))
    run = candidate_of(row, tmp_path / "sweep").run("cat")
    assert run.eraser == parse({"eraser": eraser_of_budget("minutes"), "concepts": [{"target": "cat"}]}).eraser


def test_a_row_is_measured_and_audited_and_a_killed_one_goes_on(tmp_path: Path, untrained: None) -> None:
    swept(tmp_path, "uce", "default", {"default": 1.0}, rows="last-subject")
    row = Row(method="uce", settings="chosen", case="cat")
    golds = [world.gold(tmp_path / name, name) for name in ("cat", "neon")]
    record = experiment(row, options(tmp_path, gold=golds), lambda _: None)
    assert {name: record["rates"][name]["n"] for name in ("held_out", "joint")} == {"held_out": 1, "joint": 2}
    assert "beside" in record["rates"]
    assert len(record["fit"]["cpu_seconds"]) == 1
    assert record["seconds_per_image"] > 0
    assert record["artefact"]["mib"] > 0
    assert record["artefact"]["lora"]["relative_error"] >= 0
    assert set(record["audit"]["concepts"]) == {"cat"}
    assert record["options"]["gold"] == list(record["golds"]) == ["cat"]
    assert record["config"]["eraser"]["name"] == "uce"
    again = experiment(row, options(tmp_path, audited=[]), lambda _: None)
    assert again["rates"] == record["rates"]
    assert again["fit"] == record["fit"]  # with a fit more there would be two entries
    assert again["audit"] is None


def test_a_sampling_edit_has_no_lora_and_a_family_is_one_row(tmp_path: Path, untrained: None) -> None:
    swept(tmp_path, "negative-prompt", "published", {"published": 0.0})
    row = Row(method="negative-prompt", settings="chosen", case="weapons")
    record = experiment(row, options(tmp_path, images=3), lambda _: None)
    assert record["artefact"]["lora"] is None
    assert record["audit"] is None
    assert record["rates"]["held_out"]["n"] == 3
    assert len(record["fit"]["cpu_seconds"]) == len(CASES["weapons"])


def test_the_transformer_has_rows_apart(tmp_path: Path, untrained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = world.pipeline()
    net = models.transformer(heads=2, head_dim=16, double_blocks=1, single_blocks=1)
    pipe = models.assemble_flux(net, unet.text_encoder, unet.vae, unet.tokenizer)
    monkeypatch.setattr(tinyworld, "load_flux", lambda **_: deepcopy(pipe))
    swept(tmp_path, "uce", "default", {"default": 1.0})
    row = Row(method="uce", settings="chosen", case="gun")
    record = experiment(row, options(tmp_path, model="tinyworld-flux"), lambda _: None)
    assert record["config"]["model"] == "tinyworld-flux"
    assert record["artefact"]["lora"]["mib"] > 0
    assert {each.name for each in (tmp_path / "work").iterdir()} == {"tinyworld-flux"}
    assert str(folder_of("results", "sweep", "tinyworld-flux")) == str(Path("results/tinyworld-flux/sweep"))


def test_several_rows_are_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "uce", "default", {"default": 1.0})
    for case, changes in (("cat", {}), ("neon", {"config": {"of": "another setting"}})):
        row = Row(method="uce", settings="chosen", case=case)
        row.folder(tmp_path / "out").mkdir(parents=True)
        record = {"options": {}, **row.facts(options(tmp_path)), **changes}
        (row.folder(tmp_path / "out") / "run.json").write_text(json.dumps(record))
    commands: list[list[str]] = []

    class Done:
        returncode = 0

    monkeypatch.setattr(apart.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    places = ["--gold", "--sweep", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]
    arguments = ["--method", "uce", "--concept", "cat", "neon", "gun", "--settings", "chosen", "--images", "8", *places]
    monkeypatch.setattr(sys, "argv", ["leaderboard", *arguments])
    with pytest.raises(SystemExit) as ended:
        leaderboard.main()
    assert ended.value.code == 0
    row = ["--method", "uce", "--settings", "chosen", "--concept"]
    assert [command[3:] for command in commands] == [[*row, name, "--images", "8", *places] for name in ("neon", "gun")]


def ended(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Return what the command ends with."""
    monkeypatch.setattr(sys, "argv", ["leaderboard", *arguments])
    with pytest.raises(SystemExit) as end:
        leaderboard.main()
    return end.value.code


def test_a_record_of_other_options_is_refused_and_a_damaged_one_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(tmp_path, "uce", "default", {"default": 1.0})
    file = tmp_path / "out" / "uce" / "chosen" / "cat" / "run.json"
    file.parent.mkdir(parents=True)
    facts = Row(method="uce", settings="chosen", case="cat").facts(options(tmp_path))
    file.write_text(json.dumps({"options": {"images": 8, "model": "tinyworld", "gold": ["a"]}, **facts}))
    row = ["--method", "uce", "--concept", "cat", "--settings", "chosen", "--gold"]
    places = ["--sweep", str(tmp_path / "sweep"), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(leaderboard, "experiment", lambda *_: pytest.fail("is there already"))
    expected = rf"leaderboard: {file}: expected a record with images=32, got one with 8\. Name another --out"
    assert re.match(expected, str(ended([*row, *places], monkeypatch)))
    other_model = [*row, *places, "--images", "8", "--model", "tinyworld-flux"]
    assert "expected a record with model=tinyworld-flux, got one with tinyworld" in str(ended(other_model, monkeypatch))
    monkeypatch.setattr(sys, "argv", ["leaderboard", *row, *places, "--images", "8"])
    leaderboard.main()
    assert "1 of 1 rows" in capsys.readouterr().out
    (tmp_path / "sweep" / "uce" / "run.json").unlink()
    (tmp_path / "sweep" / "uce").rmdir()
    swept(tmp_path, "uce", "default", {"default": 1.0}, rows="last-subject")
    monkeypatch.setattr(leaderboard, "experiment", lambda *_: {"options": {"images": 8}, "rows": "of the new choice"})
    leaderboard.main()
    assert "new choice" in file.read_text()
    file.write_text('{"bench')
    monkeypatch.setattr(leaderboard, "experiment", lambda *_: {"options": {"images": 8}})
    leaderboard.main()
    assert json.loads(file.read_text()) == {"options": {"images": 8}}


def test_wrong_options_end_in_one_line_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(tmp_path, "uce", "default", {"default": 1.0})
    monkeypatch.setattr(leaderboard, "experiment", lambda *_: pytest.fail("work before the check"))
    (tmp_path / "file").write_text("")
    row = ["--method", "uce", "--concept", "cat", "--sweep", str(tmp_path / "sweep"), "--settings", "chosen"]
    for wrong, line in {
        ("--probes", "plainn", "--out", str(tmp_path / "out")): r"Unknown probe 'plainn'\. Did you mean 'plain'",
        ("--gold", "nope", "--out", str(tmp_path / "out")): "--gold: expected the folder of a denoiser, got 'nope'",
        ("--out", str(tmp_path / "file")): "expected a folder that can be written",
    }.items():
        assert re.match(f"leaderboard: .*{line}", str(ended([*row, *wrong], monkeypatch)))
    nothing = ["--method", "uce", "--concept", "gun", "--settings", "minutes", "--sweep", str(tmp_path / "sweep")]
    assert "expected options that fit a row" in str(ended(nothing, monkeypatch))
    assert ended(["--method", "uce", "--conc", "gun"], monkeypatch) == 2  # a part of a name is none
    assert ended([*row, "--images", "0"], monkeypatch) == 2
    (tmp_path / "sweep" / "uce" / "run.json").write_text('{"chosen": ')
    assert re.match("leaderboard: .*expected a record of the sweep, got", str(ended(row, monkeypatch)))


def test_a_residue_is_recorded_with_its_floor_and_what_is_kept() -> None:
    def judged(hits: int) -> list[Judged]:
        values = tuple(float(i < hits) for i in range(16))
        return [Judged(dose=1.0, part="", label="", values=values, kept=values[4:])]

    shown = {ERASED: judged(8), ORIGINAL: judged(16)}
    floors = ((PLAIN, shown), (NOVEL, {**shown, NOVEL: judged(0)}), (GOLD, {**shown, GOLD: judged(0)}))
    for floor, outcomes in floors:
        probe = ProbeResult(
            name="p", access="weights", about="", unit="", settings={}, outcomes=outcomes, plain=(0.0,) * 16
        )
        audits = (ConceptAudit(concept="cat", probes={"p": probe}, gold="", untested=()),)
        results: Any = SimpleNamespace(audit=SimpleNamespace(suite="quick", probes={"p": None}), concepts=audits)
        residue = audit_record(results)["concepts"]["cat"]["outside"]["p"]
        assert residue["floor"] == floor
        assert residue["kept"] == {"erased": 4 / 12, "original": 1.0}


def test_an_audit_has_the_quick_suite_and_soft_prompts() -> None:
    assert {"plain", "hand-over", "relearn", "inversion", "quantise", "soft-prompt"} <= set(PROBES_OF_ROWS)
