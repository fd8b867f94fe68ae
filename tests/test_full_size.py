"""The command on a folder of Stable Diffusion 1.5's full architecture: random weights, CLIP's own tokenizer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tests.tiny as tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it, in float16 to spare the disk: 860 M parameters of denoiser."""
    path = tmp_path_factory.mktemp("sd15")
    tiny.sd15().to(dtype=torch.float16).save_pretrained(path)
    return path


def _erasure(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "erasure", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_edits_saves_reloads_and_undoes_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    given = ("--kind", "style", "--preserve", "Monet", "Rembrandt", "--ledger", str(ledger), "--device", "cpu")
    # A picture of this size takes minutes on a CPU: few of few steps in the report.
    few = [f"measure.{name}=1" for name in ("steps", "per_concept", "near", "far")]
    given = (*given, *(word for setting in few for word in ("--set", setting)))
    document = json.loads(_erasure("remove", "Van Gogh", "church", "--model", str(folder), *given, "--json"))
    assert [step["concepts"] for step in document["steps"]] == [["Van Gogh"], ["church"]]
    assert document["measure_skipped"]
    assert "verified: 2 removals" in _erasure("verify", str(ledger), "--device", "cpu")

    pictures = {}
    for name, source in (("original", str(folder)), ("edited", str(ledger))):
        pictures[name] = _generated(source, tmp_path / name)
    assert not np.array_equal(pictures["original"], pictures["edited"])
    np.testing.assert_array_equal(_generated(str(ledger), tmp_path / "again"), pictures["edited"])

    for name in ("002", "001"):
        _erasure("undo", str(ledger), name)
    np.testing.assert_array_equal(_generated(str(ledger), tmp_path / "undone"), pictures["original"])


def _generated(source: str, to: Path) -> np.ndarray:
    given = ("--prompt", "a church in the style of Van Gogh", "--steps", "2", "--device", "cpu")
    (path,) = _erasure("generate", source, *given, "--out", str(to)).split()
    return np.asarray(Image.open(path))
