"""The benchmarks on small shapes: that each runs, says its numbers, and records what made them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# The others train or sample for half a minute and more even so.
QUICK = {
    "apply_edit": [],
    "closed_form": ["--concepts", "1", "20"],
    "encoding": [],
    "ledger": [],
}


@pytest.mark.parametrize("name", QUICK)
def test_a_benchmark_runs_and_records_its_numbers(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--toy", "--repeats", "1", *QUICK[name]]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["config"]["toy"] is True
    assert run["git"].keys() >= {"commit", "dirty"}
    assert len(run["results"]) >= 1
    assert len(done.stdout.splitlines()) > 1  # the path, and a line a result
