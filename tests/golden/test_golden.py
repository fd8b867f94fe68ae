"""Files that earlier versions wrote still load, and say what they said.

The files beside this one are by `make.py`, with the code of commit 5ad1a26 (torch 2.15, CPU, one thread).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from erasure import Edit, Ledger, load_model, make_eraser
from erasure.backbones import backbone_of
from erasure.edits import WeightEdit
from erasure.ledger import present_settings
from erasure.ledger.replay import replay

FOLDER = Path(__file__).parent
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_model("tinyworld")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(shutil.copytree(FOLDER / "ledger", tmp_path / "ledger"))


def norms(edit: Edit, pipe: Any) -> dict[str, float]:
    assert isinstance(edit, WeightEdit)
    weights = backbone_of(pipe).parameters(edit.changes.__contains__)
    return {name: float(change.of(weights[name].detach()).norm()) for name, change in edit.changes.items()}


def test_a_ledger_opens_verifies_and_has_the_same_edit(ledger: Ledger, pipe: Any) -> None:
    assert ledger.verify(pipe) == []
    assert [(entry.method, entry.state) for entry in ledger.entries] == [
        ("uce", "undone"),
        ("uce", "standing"),
        ("esd", "standing"),
    ]
    assert ledger.state() == EXPECTED["state"]
    assert norms(ledger.edit(), pipe) == pytest.approx(EXPECTED["standing"], rel=1e-9)
    assert ledger.approximate == ("003",)
    assert ledger.moved(pipe) == pytest.approx(EXPECTED["moved"], rel=1e-9)


def test_an_undone_removal_is_added_again(ledger: Ledger, pipe: Any) -> None:
    """The joint solve is the same in any order."""
    ledger.add(Edit.load(ledger.path / ledger.entries[0].file))
    assert norms(ledger.edit(), pipe) == pytest.approx(EXPECTED["with_001"], rel=1e-9)


def test_a_trained_removal_is_made_again_under_the_names_of_today(ledger: Ledger, pipe: Any, tmp_path: Path) -> None:
    trained = ledger.entries[-1]
    assert "preservation" in trained.settings
    made, entries = replay(ledger, pipe, "tinyworld", tmp_path / "again")
    assert [entry.method for entry in entries] == ["uce", "esd"]
    settings = made.entries[-1].settings
    assert settings["shape"]["keep"] == {}
    assert all(settings[name] == trained.settings[name] for name in ("steps", "lr", "rank"))
    assert Ledger.open(ledger.path).entries[-1] == trained


def test_every_setting_of_an_earlier_version_has_its_place() -> None:
    counts = {name: 7 for name in ("fisher_pictures", "target_pictures", "picture_steps", "probe_pictures")}
    old = {**counts, "picture_guidance": 4.0, "trained": "attn2", "preservation": {"attention": 2.0}, "lr": 1e-4}
    duge = make_eraser("duge", **present_settings("duge", old))
    assert (duge.fisher_images, duge.target_images, duge.image_steps, duge.probe_images) == (7, 7, 7, 7)
    assert (duge.image_guidance, duge.trained, duge.lr) == (4.0, "cross", 1e-4)
    assert duge.shape.keep == {"attention": 2.0}
    assert make_eraser("duge", **present_settings("duge", duge.as_settings())) == duge
    for method in ("esd", "trce"):
        assert make_eraser(method, **present_settings(method, {"preservation": {"attention": 2.0}})).shape.keep


def test_an_edit_loads(pipe: Any) -> None:
    edit = Edit.load(FOLDER / "edit.safetensors")
    assert [concept.target for concept in edit.metadata.concepts] == ["dog", "boat"]
    edit.check_base(pipe)
    assert norms(edit, pipe) == pytest.approx(EXPECTED["standing"], rel=1e-9)
