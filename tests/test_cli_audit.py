"""`erasure audit`, as a person or a script meets it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from erasure import Ledger
from erasure.backbones import backbone_of
from erasure.cli.main import app
from erasure.judge import cached_clips
from tests.tiny import sd1


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def fails(*arguments: str | Path) -> str:
    """Return the one line that a call which must fail says."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    [line] = result.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of the Stable Diffusion 1 classes with random weights, and another with some of them moved."""
    base, edited = (tmp_path_factory.mktemp(name) for name in ("base", "edited"))
    pipe = sd1(vocabulary="clip")
    pipe.save_pretrained(base)
    with torch.no_grad():
        for weight in backbone_of(pipe).parameters(backbone_of(pipe).sites(("cross.k",)).__contains__).values():
            weight.mul_(0.9)
    pipe.save_pretrained(edited)
    return base, edited


def test_a_ledger_without_a_standing_removal_is_one_line(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", "0" * 16, "tinyworld")
    line = fails("audit", tmp_path / "ledger")
    assert "expected a ledger in which a removal stands, got one without" in line


def test_a_model_without_a_judge_is_measured_inside_and_says_what_is_missing(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cached_clips():
        pytest.skip("CLIP is in the local cache and judges")
    monkeypatch.setenv("ERASURE_CACHE", str(tmp_path / "cache"))
    base, edited = models
    asked = ("--probe", "hidden", "traces", "hand-over", "--set", "hidden.pairs=2", "--set", "hidden.levels=1")
    arguments = ("audit", edited, "--removed", "cat", "--original", base, *asked, "--set", "traces.latents=2")
    result = call(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "not measured: hand-over: a judge of the images: hf download openai" in result.output
    [concept] = json.loads((tmp_path / "out" / "audit.json").read_text())["concepts"]
    status = {name: probe["status"] for name, probe in concept["probes"].items()}
    assert status == {"plain": "missing", "hand-over": "missing", "hidden": "measured", "traces": "measured"}
    parts = {reading["part"]: reading["rows"] for reading in concept["probes"]["hidden"]["readings"]}
    assert parts["keys"]["original"]["mean"] == pytest.approx(1, abs=1e-4)
    assert parts["keys"]["erased"]["mean"] < 1
