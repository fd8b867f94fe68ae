"""Rows of `absent`: a name belongs to one row, and wrong options end in one line."""

import argparse
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from erasure.concept import Concept
from erasure.errors import InputError
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import ablate_absent
from experiments.ablate_absent import Bench, check_plan, eraser_of, plan_of
from tests import tiny


def plan(*, target: str = "dog", under: str | None = None, original: bool = False, **settings: Any) -> dict[str, Any]:
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
        "settings": {"original": True},
    }
    for name, changes in changed.items():
        expected = rf"^some: expected the {name}.* of this row, .*, got .*\. Choose another name, or delete "
        with pytest.raises(InputError, match=expected):
            check_plan(tmp_path, "some", plan(**changes))
    (tmp_path / "plan.json").write_text('{"conc')
    check_plan(tmp_path, "some", plan())


def test_the_plan_has_the_settings_that_were_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_plan(tmp_path, "some", plan())
    profile = {**TinyWorldProfile().settings("absent"), "steps": 3}
    monkeypatch.setattr(TinyWorldProfile, "settings", lambda *_: profile)
    with pytest.raises(InputError, match=r"expected the settings\.steps of this row, \d+, got 3"):
        check_plan(tmp_path, "some", plan())


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
