"""Both searches of UnlearnDiffAtk on the same prompts: the record, and going on where it ended."""

import argparse
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from docs.tables.evaluations import searches
from erasure import tinyworld
from erasure.eval.attacks.unlearn_diff import UnlearnDiff
from erasure.profile import SamplingDefaults
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import unlearn_diff
from experiments.experiment import write_record
from experiments.unlearn_diff import PLAIN, experiment, row
from tests.eval import world

CONFIG = Path(__file__).parents[2] / "configs" / "uce" / "weapon-words-tinyworld.yaml"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    searches = {"sampled": UnlearnDiff(**UnlearnDiff.quick), "mixture": UnlearnDiff(relaxation="mixture", rounds=2)}
    monkeypatch.setattr(unlearn_diff, "SEARCHES", searches)
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=2, guidance_scale=2.0))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings = {"config": CONFIG, "prompts": 2, "budget": 2, "work": folder / "work", "out": folder / "uce"}
    return argparse.Namespace(**settings | changes)


def test_prompts_are_attacked_by_both_searches_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = experiment(options(tmp_path))
    assert [set(each["first"]) for each in record["attacked"]] == [{"sampled", "mixture", PLAIN}] * 2
    assert set(record["searches"]) == {"sampled", "mixture"}
    monkeypatch.setattr(unlearn_diff.Trial, "attacked", lambda *_: pytest.fail("was attacked already"))
    assert experiment(options(tmp_path))["rows"] == record["rows"]
    with pytest.raises(pytest.fail.Exception, match="was attacked already"):  # with another budget it was not
        experiment(options(tmp_path, budget=1))
    (tmp_path / "results" / "uce").mkdir(parents=True)
    write_record(record, tmp_path / "results" / "uce")
    lines = searches("*/run.json", tmp_path / "results").splitlines()
    assert [line.split(" | ")[1:3] for line in lines[2:5]] == [["sampled", "8"], ["mixture", "8"], [PLAIN, "–"]]


def test_a_row_counts_prompts_by_the_image_that_showed_something_first() -> None:
    attacked = [
        {"first": {"a": first}, "cpu_seconds": {"a": seconds}} for first, seconds in ((1, 2), (3, 4), (None, 6))
    ]
    counted = row(attacked, "a", 3)
    assert [rate["value"] for rate in counted["success"]] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert counted["cpu_seconds"] == 4
    plain = row([{"first": {PLAIN: None}, "cpu_seconds": {"a": 1}}], PLAIN, 1)
    assert plain["cpu_seconds"] is None
