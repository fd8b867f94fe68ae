"""The benchmarks on small shapes: that each runs, says its numbers, and records what made them."""

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.processes import in_copies

QUICK: dict[str, list[str]] = {
    "apply": ["--concepts", "20"],
    "apply_edit": [],
    "bulk": [],
    "closed_form": ["--concepts", "20"],
    "encoding": [],
    "ledger": [],
}
# These start processes that import everything, or sample, and take half a minute and more even so.
SLOW: dict[str, list[str]] = {"commands": ["--cases", "export"], "evaluation": [], "processes": []}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_benchmark_runs_and_records_its_numbers(name: str, tmp_path: Path) -> None:
    def measured() -> str:
        sys.argv = [name, "--toy", "--repeats", "1", *(QUICK | SLOW)[name], "--out", str(tmp_path)]
        with redirect_stdout(io.StringIO()) as output:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        return output.getvalue()

    [output] = in_copies(measured)
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["config"]["toy"] is True
    assert run["git"].keys() >= {"commit", "dirty"}
    assert len(run["results"]) >= 1
    assert len(output.splitlines()) > 1  # the path, and a line a result
