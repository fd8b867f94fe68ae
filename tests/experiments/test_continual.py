"""Eight removals in a row: the measures, and a run that goes on where it was ended."""

import argparse
import json
import random
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.protocols.plans import PlannedImage
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw
from experiments import continual, continual_curves
from experiments.continual import FAR, NEAR, ORDERS, ROLES, TARGETS, StateReading, _measured, experiment
from tests.eval import world

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ["measure.steps=1", "eraser.rows=last-subject"]


@pytest.fixture(autouse=True)
def untrained_tinyworld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "config": CONFIGS / "uce" / "sequence-tinyworld.yaml",
        "order": "a",
        "seed": 0,
        "in_place": False,
        "set": QUICK,
        "images": 1,
        "points": [1, 2],
        "work": folder / "work",
        "out": folder / "uce-a-0",
    }
    return argparse.Namespace(**settings | changes)


def probes(per_concept: int) -> list[PlannedImage]:
    return [
        PlannedImage(name=name, role=role, prompt=f"a {name}", seed=at)
        for role, names in ROLES.items()
        for name in names
        for at in range(per_concept)
    ]


def test_what_is_asked_for_is_told_apart() -> None:
    assert set(ORDERS["a"]) == set(ORDERS["b"]) == set(TARGETS)
    assert not set(TARGETS) & {*NEAR, *FAR}
    siblings = {sibling for name in TARGETS for sibling in vocabulary.siblings(name)}
    assert siblings.issuperset(NEAR)
    assert siblings.isdisjoint(FAR)


def test_equal_pictures_erode_nothing_and_shuffled_ones_count_as_forgotten() -> None:
    """Spec 9.12, on drawings: the truth is known, and the oracle reads it."""
    asked = [probe for probe in probes(25) if probe.name in vocabulary.OBJECTS]
    rng = random.Random(0)
    pictures = [np.asarray(draw(compose([probe.name], rng))) for probe in asked]
    # Each prompt gets another concept's picture.
    turned = pictures[25:] + pictures[:25]
    oracle, judge = tinyworld.load_oracle(), tinyworld.load_clip()

    def look(images: list[np.ndarray]) -> StateReading:
        reading = oracle.read(np.stack(images))
        seen = np.array([bool(reading.sees(probe.name)[at]) for at, probe in enumerate(asked)])
        return StateReading(seen=seen, features=judge.image_features(np.stack(images)))

    names = tuple(dict.fromkeys(probe.name for probe in asked))
    kept = {role: tuple(name for name in ROLES[role] if name in names) for role in ("near", "far")}
    gone = [name for name in TARGETS if name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continual, "NEAR", kept["near"])
        patch.setattr(continual, "FAR", kept["far"])
        right, again, wrong = look(pictures), look(pictures), look(turned)
        same = _measured(asked, again, right, gone, 0.0)
        shuffled = _measured(asked, wrong, right, gone, 0.0)
    accuracy = np.mean([same["accuracy"][name]["value"] for name in gone])
    assert accuracy > 0.98
    assert same["ua"] == pytest.approx(1 - accuracy)  # UA of a model that forgot nothing
    assert same["ge"] == 0
    assert shuffled["ua"] > 0.98
    assert shuffled["ra_near"] < 0.02
    assert shuffled["ge"] > 0.9


def test_distances_need_a_thousand_pictures_and_are_zero_for_equal_ones() -> None:
    asked = probes(50)
    features = torch.nn.functional.normalize(torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    looks = [StateReading(seen=np.ones(len(asked), bool), features=features.clone()) for _ in range(2)]
    found = _measured(asked, looks[1], looks[0], ["cat"], 0.0)
    assert found["fd"] == pytest.approx(0, abs=1e-4)
    assert found["kid"] == pytest.approx(0, abs=2e-3)
    assert _measured(asked, looks[0], looks[0], [], 0.0)["fd"] is None  # the original against itself says nothing
    few = probes(1)
    short = [StateReading(seen=np.ones(len(few), bool), features=features[:20]) for _ in range(2)]
    assert _measured(few, short[1], short[0], ["cat"], 0.0)["fd"] is None


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    add = continual.Removals.add

    def ends(self: Any, *arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return add(self, *arguments)

    monkeypatch.setattr(continual.Removals, "add", ends)
    with pytest.raises(KeyboardInterrupt):
        experiment(options(tmp_path))
    stopped = experiment(options(tmp_path))
    assert calls == 3  # the first removal was not made again
    pictures = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").rglob("*.png")}
    assert len(pictures) == 3 * (len(TARGETS) + len(NEAR) + len(FAR))
    whole = experiment(options(tmp_path, out=tmp_path / "other-a-0"))
    assert stopped["points"] == whole["points"]
    assert all(file.stat().st_mtime_ns == then for file, then in pictures.items())
    assert whole["points"]["0"]["ua"] is None
    assert [removal["target"] for removal in whole["removals"]] == ["cat", "neon"]
    assert json.loads(json.dumps(whole)) == whole


def test_work_of_other_settings_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def stopped(*, folder: Path, **_: Any) -> None:
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(continual, "Removals", stopped)
    monkeypatch.setattr(continual, "InPlace", stopped)
    setting = {"set": [*QUICK, "eraser.reg=0.25"]}
    for changes in ({}, {"points": [1]}, {"order": "b"}, {"seed": 1}, {"in_place": True}, setting):
        with pytest.raises(KeyboardInterrupt):
            experiment(options(tmp_path, **changes))
    same, again, *others = folders
    assert same == again
    assert len({same, *others}) == 5


def test_points_beyond_the_last_removal_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--points: expected numbers from 1 to 8, got \[9\]"):
        experiment(options(tmp_path, points=[9]))
    assert not (tmp_path / "work").exists()


def test_in_place_each_is_fitted_on_the_last_weights(tmp_path: Path) -> None:
    joint = experiment(options(tmp_path))
    placed = experiment(options(tmp_path, in_place=True, out=tmp_path / "placed-a-0"))
    assert placed["points"]["1"]["drift"] == pytest.approx(joint["points"]["1"]["drift"], rel=1e-5)
    assert placed["points"]["2"]["drift"] != pytest.approx(joint["points"]["2"]["drift"], rel=1e-5)


def test_the_command_writes_a_record_that_the_curves_are_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(tmp_path)
    command = ["continual", "--config", str(chosen.config), "--images", "1", "--points", "1", "2"]
    command += [word for setting in QUICK for word in ("--set", setting)]
    command += ["--work", str(chosen.work), "--out", str(tmp_path / "runs" / "uce-a-0")]
    monkeypatch.setattr(sys, "argv", command)
    continual.main()
    [record] = continual_curves.read(tmp_path / "runs")
    assert record["label"] == "uce"
    assert set(record["points"]) == {"0", "1", "2"}
    monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "runs"), "--out", str(tmp_path / "curves.png")])
    continual_curves.main()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["curves", str(tmp_path / "work"), "--out", str(tmp_path / "curves.png")])
    with pytest.raises(SystemExit, match=r"continual_curves: expected folders with a run\.json"):
        continual_curves.main()
