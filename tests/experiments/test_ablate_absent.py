"""Rows of `absent`: a name belongs to one row, what stays is read beside the original, wrong options are one line."""

import argparse
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from docs.tables.ablations import absent
from erasure.concept import Concept
from erasure.errors import InputError
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import ablate_absent
from experiments.ablate_absent import Bench, check_plan, eraser_of, plan_of, under_of
from tests import tiny


def plan(
    *, target: str = "dog", under: str | dict[str, Any] | None = None, original: bool = False, **settings: Any
) -> dict[str, Any]:
    aim, options = SimpleNamespace(concept=Concept(target=target)), argparse.Namespace(under=under)
    bench = Bench(pipe=tiny.sd1(), aim=cast("Any", aim), held_out=(), options=options, judge=None)
    return plan_of(bench, None if original else eraser_of(settings))


def test_a_name_belongs_to_one_row(tmp_path: Path) -> None:
    for _ in range(2):
        check_plan(tmp_path, "some", plan())
    changed: dict[str, dict[str, Any]] = {
        "concept.target": {"target": "cat"},
        "settings.steps": {"steps": 3},
        "under": {"under": "uce"},
        "under.": {"under": {"name": "uce", "rows": "published"}},
        "settings": {"original": True},
    }
    for name, changes in changed.items():
        expected = rf"^some: expected the {name}.* of this row, .*, got .*\. Choose another name, or delete "
        with pytest.raises(InputError, match=expected):
            check_plan(tmp_path, "some", plan(**changes))
    (tmp_path / "plan.json").write_text('{"conc')
    check_plan(tmp_path, "some", plan())


def test_a_closed_form_is_named_or_has_settings() -> None:
    assert under_of("uce") == "uce"
    assert under_of('{"name": "uce", "strength": 2}') == {"name": "uce", "strength": 2}
    assert plan(under={"name": "uce", "strength": 2.0})["under"] == {**plan(under="uce")["under"], "strength": 2.0}
    for text in ("{", "{}", '{"name": 3}'):
        with pytest.raises(argparse.ArgumentTypeError, match=r"^expected "):
            under_of(text)


def test_the_plan_has_the_settings_that_were_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plan(tmp_path, "some", plan())
    profile = {**TinyWorldProfile().settings("absent"), "steps": 3}
    monkeypatch.setattr(TinyWorldProfile, "settings", lambda *_: profile)
    with pytest.raises(InputError, match=r"expected the settings\.steps of this row, \d+, got 3"):
        check_plan(tmp_path, "some", plan())


def test_what_stays_is_read_beside_the_original_or_not_at_all(tmp_path: Path) -> None:
    measures = {"seen": 0.0, "seen_held_out": 0.0, "near": [1, 0], "far": [1, 0, 0]}
    fit = {"settings": {"steps": 5}, "curve": {"cpu_seconds": 3.0}, "images": 2, "provenance": {}}
    for name, record in {
        "dog-row": {**fit, "row": "dog-row", "concept": "dog", "measures": {"5": measures}},
        "castle-row": {**fit, "row": "castle-row", "concept": "castle", "measures": {"5": measures}},
        "original-dog": {
            **{"row": "original-dog", "concept": "dog", "images": 2, "provenance": {}},
            "measures": {"0": {**measures, "near": [1, 0], "far": [1, 1, 0]}},
        },
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    rows = [line.strip("| ").split(" | ") for line in absent("*/run.json", tmp_path).splitlines() if "-row |" in line]
    kept = {row[0]: tuple(row[6:8]) for row in rows}
    assert kept == {"castle-row": ("–", "–"), "dog-row": ("1/1", "1/2")}


def test_wrong_options_end_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    for arguments, line in {
        ("--concept", "dgo"): r"Unknown concept .*'dgo'",
        ("--settings", '{"stps": 1}'): r"Unknown absent setting 'stps'\. Did you mean 'steps'",
    }.items():
        monkeypatch.setattr(sys, "argv", ["ablate_absent", arguments[-1][:3].strip('{"'), *arguments, *places])
        with pytest.raises(SystemExit) as end:
            ablate_absent.main()
        assert re.match(rf"ablate_absent: .*{line}", str(end.value.code)), end.value.code
    for arguments, line in {
        ("--settings", "[1]"): "expected an object as JSON, got '[1]'",
        ("--probes", "plainn"): "invalid choice: 'plainn'",
        ("--images", "0"): "expected a whole number greater than 0, got '0'",
    }.items():
        monkeypatch.setattr(sys, "argv", ["ablate_absent", "x", *arguments, *places])
        with pytest.raises(SystemExit):
            ablate_absent.main()
        assert line in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
