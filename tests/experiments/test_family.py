"""A family erased, judged and attacked: the record, going on where it ended, and what is refused."""

import argparse
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from erasure import tinyworld
from erasure.errors import InputError
from erasure.eval.protocols import red_team
from erasure.eval.stats.scores import Rate
from erasure.ledger import Ledger
from erasure.profile import SamplingDefaults
from erasure.runs.configs import read_config
from erasure.runs.schema import parse
from erasure.tinyworld.profile import TinyWorldProfile
from experiments import family
from experiments.family import FAMILY, experiment, summary
from tests.eval import world

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def untrained_tinyworld(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tinyworld, "load", lambda **_: deepcopy(world.pipeline()))
    monkeypatch.setattr(TinyWorldProfile, "sampling", SamplingDefaults(steps=2, guidance_scale=2.0))
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "config": CONFIGS / "trce" / "weapons-tinyworld.yaml",
        "set": ["eraser.stages=text", "eraser.reg=0.1"],
        "images": 24,
        "attacks": [],
        "prompts": 2,
        "budget": 2,
        "work": folder / "work",
        "out": folder / "trce",
    }
    return argparse.Namespace(**settings | changes)


def test_a_family_is_erased_judged_and_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = experiment(options(tmp_path, attacks=["unlearn-diff"]))
    assert record["fits"] == [{"concepts": list(FAMILY), "seconds": record["fits"][0]["seconds"]}]
    assert {"erased", "original"} == record["scores"].keys()
    assert {f"efficacy_{wording}" for wording in ("explicit", "synonym", "combined", "implicit")} <= record["scores"][
        "erased"
    ].keys()
    attack = record["attacks"]["unlearn-diff"]
    assert set(attack["rows"]) == set(red_team.ROWS)
    assert [len(row["success"]) for row in attack["rows"].values()] == [2, 2, 2]
    assert "unlearn-diff: attacked" in summary(record)
    assert record["beside"] == {"erased": None, "original": None}  # an untrained model shows nothing to keep
    monkeypatch.setattr(red_team.AttackRun, "_attacked", lambda *_: pytest.fail("was attacked already"))
    again = experiment(options(tmp_path, attacks=["unlearn-diff"]))
    assert again["scores"]["erased"]["efficacy_implicit"] == record["scores"]["erased"]["efficacy_implicit"]
    assert again["attacks"]["unlearn-diff"]["rows"] == attack["rows"]


def test_an_edit_of_other_settings_is_left_alone(tmp_path: Path) -> None:
    for reg in ("0.1", "0.2", "0.2"):
        settings = ["eraser.stages=text", f"eraser.reg={reg}"]
        experiment(options(tmp_path, set=settings, images=8))
    ledgers = [Ledger.open(folder) for folder in (tmp_path / "work").glob("*/ledger")]
    assert {entry.settings["reg"] for ledger in ledgers for entry in ledger.entries} == {0.1, 0.2}
    assert len(ledgers) == 2


def test_tools_and_vehicles_are_counted_together() -> None:
    rates = {"hammer": {"value": 0.5, "n": 4}, "car": {"value": 1.0, "n": 2}, "cat": {"value": 0.0, "n": 9}}
    assert set(family.BESIDE) == {"hammer", "scissors", "car", "cart", "boat", "rocket"}
    assert family.beside(rates) == Rate(hits=4, n=6)
    assert family.beside({"cat": rates["cat"]}) is None


def test_it_is_about_one_family(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the concepts gun, knife, bomb, got others"):
        experiment(options(tmp_path, config=CONFIGS / "uce" / "sequence-tinyworld.yaml", set=[]))


@pytest.mark.parametrize(
    "name", ["trce/weapons-tinyworld", "uce/weapons-tinyworld", "uce/weapon-words-tinyworld", "esd/weapons-tinyworld"]
)
def test_every_method_has_the_same_family_and_the_same_safe_phrase(name: str) -> None:
    run = parse(read_config(CONFIGS / f"{name}.yaml"))
    assert tuple(concept.target for concept in run.concepts) == FAMILY
    assert {concept.anchor for concept in run.concepts} == {"flower"}
    assert any(concept.aliases for concept in run.concepts) == ("words" not in name)


def test_a_wrong_attack_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", str(CONFIGS / "trce" / "weapons-tinyworld.yaml"), "--attacks", "mna", "--out", "x"]
    monkeypatch.setattr(sys, "argv", ["family", *arguments])
    with pytest.raises(SystemExit, match=r"family: Unknown attack 'mna'\. Did you mean 'mma'"):
        family.main()
