"""The command on a folder of Stable Diffusion 1.5's full architecture: random weights, CLIP's own tokenizer."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tests.tiny as tiny
from erasure.concept import Concept
from erasure.loading import load_model
from tests import full_size

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


@pytest.mark.parametrize(("name", "gib"), [("sd15", 1.5), ("sdxl", 4)])
def test_a_model_on_the_disk_takes_little_memory(name: str, gib: float, tmp_path: Path) -> None:
    full_size.write_model(full_size.MODELS[name](), tmp_path / "model")
    given = ["--kind", "style", "--preserve", "Monet", "Rembrandt", "--model", str(tmp_path / "model"), "--low-memory"]
    where = ["--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / "out")]
    assert full_size.command(["remove", "Van Gogh", *given, *where])["peak_mib"] < gib * 2**10
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's memory as Linux says it")
@pytest.mark.parametrize("name", full_size.MODELS)
def test_a_closed_form_takes_little_beyond_a_loaded_model(name: str, tmp_path: Path) -> None:
    full_size.write_model(full_size.MODELS[name](), tmp_path / "model")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        peak, bound = pool.submit(_beyond, tmp_path / "model").result()
    assert 0 < peak < bound


def _beyond(folder: Path) -> tuple[float, float]:
    """Return what a removal takes beyond a loaded model, and the bound on it."""
    pipe = load_model(str(folder), dtype=torch.bfloat16)
    concept = Concept(target="Van Gogh", kind="style", preserve=("Monet", "Rembrandt"))
    return full_size.peak_beyond_mib(pipe, concept), full_size.bound_mib(full_size.text_weights_mib(pipe))


def _generated(source: str, to: Path) -> np.ndarray:
    given = ("--prompt", "a church in the style of Van Gogh", "--steps", "2", "--device", "cpu")
    (path,) = _erasure("generate", source, *given, "--out", str(to)).split()
    return np.asarray(Image.open(path))
