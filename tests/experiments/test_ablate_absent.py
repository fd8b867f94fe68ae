"""Rows of `absent`: a name belongs to one row, and wrong options end in one line."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from erasure.errors import InputError
from experiments import ablate_absent
from experiments.ablate_absent import check_plan


def row(**changes: Any) -> argparse.Namespace:
    options = {"name": "some", "concept": "dog", "anchor": None, "under": None, "settings": {}, "original": False}
    return argparse.Namespace(**options | changes)


def test_a_name_belongs_to_one_row(tmp_path: Path) -> None:
    for _ in range(2):
        check_plan(tmp_path, row())
    for changes in ({"concept": "cat"}, {"settings": {"steps": 3}}, {"under": "uce"}, {"original": True}):
        [name] = changes
        expected = rf"^some: expected the {name} of this row, .*, got .*\. Choose another name, or delete "
        with pytest.raises(InputError, match=expected):
            check_plan(tmp_path, row(**changes))
    (tmp_path / "plan.json").write_text('{"conc')
    check_plan(tmp_path, row())


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
