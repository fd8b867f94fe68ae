"""The facts by which an eraser is chosen are those that its class declares and its results show."""

import json
from pathlib import Path
from typing import Any

import pytest

from docs.tables.methods import measured
from erasure.erasers import eraser_class, eraser_names
from erasure.erasers.esd import ESD
from erasure.erasers.rece import RECE
from erasure.erasers.sld import SLD
from erasure.erasers.uce import UCE
from erasure.errors import InputError
from erasure.pipelines.export.formats import _WITH_GUIDANCE, FORMATS, GUIDANCES
from erasure.runs.overview import HEADINGS, overview, overviews, read_measured


def test_a_row_holds_what_the_class_declares() -> None:
    rows = {each.name: each for each in overviews()}
    assert tuple(rows) == eraser_names()
    assert all(len(each.cells()) == len(HEADINGS) for each in rows.values())
    facts = [(each.kind, each.work, each.undone, each.exact) for each in map(overview, (UCE, RECE, SLD, ESD))]
    assert facts == [
        ("map of text states", "", "in any order", True),
        ("map of text states", "", "in any order", False),
        ("sampling", "", "in any order", True),
        ("trained weights", "training", "last first", False),
    ]
    assert overview(SLD).cells()[2] == "–"
    assert rows["stack"].kind == "as its parts"


def test_what_acts_during_sampling_is_exported_as_it_says() -> None:
    sampling = [each for each in overviews() if each.kind == "sampling"]
    assert {each.exports for each in sampling} == {", ".join(_WITH_GUIDANCE)}
    assert {each.exports for each in overviews()} - {", ".join(_WITH_GUIDANCE)} == {"all"}
    assert len(FORMATS) > len(_WITH_GUIDANCE)
    assert {each.name for each in sampling} <= GUIDANCES.keys()


def test_what_trains_says_so() -> None:
    trains = {name for name in eraser_names() if {"steps", "lr"} <= eraser_class(name).__dataclass_fields__.keys()}
    assert trains == {name for name in eraser_names() if "training" in eraser_class(name).work} - {"trce"}


def run(**last: Any) -> dict[str, Any]:
    concepts = [{"target": "cat"}]
    step = {"concepts": concepts, "seconds": 1.0}
    return {
        "steps": [step, {**step, "seconds": 2.0, "efficacy": 0.5, "retention": {"near": None, "far": 0.25}, **last}]
    }


def test_the_measured_columns_are_built_from_results(tmp_path: Path) -> None:
    folder = tmp_path / "removal" / "uce"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run()))
    (tmp_path / "measured.csv").write_text(measured(tmp_path))
    assert read_measured(tmp_path / "measured.csv") == {"uce": ("1.5", "efficacy 0.50; far 0.25; cat + cat")}
    (folder / "run.json").write_text(json.dumps(run(seconds=None)))
    (tmp_path / "measured.csv").write_text(measured(tmp_path))
    assert read_measured(tmp_path / "measured.csv")["uce"][0] == ""


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "measured.csv").write_text("name,seconds\n")
    with pytest.raises(InputError, match=r"measured.csv"):
        read_measured(tmp_path / "measured.csv")
