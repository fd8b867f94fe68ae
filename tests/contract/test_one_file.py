"""A piece is one file: dropped into an installed package, it is found, held to its contract, listed and described.

The files of `tests/contract/one_file` are the pieces: an eraser, one that acts during sampling, an attack, a probe of
each access level, a term, a transform, a selector, a finish, an objective, a metric and a benchmark. Nothing else
knows of them. The example of CONTRIBUTING.md is one more.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from erasure import registry
from erasure.backbones import backbone_of
from erasure.cli.setup import extension_points
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.erasers import ERASERS
from erasure.eval.attacks.base import Access
from erasure.training.context import FitContext
from tests import pieces, tiny

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests" / "contract" / "one_file"
PROBES = [level for level in get_args(Access) if level not in ("prompt", "gradient")]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A piece in a file: its extension point, its name and the text of the file."""

    noun: str
    name: str
    text: str


def source(stem: str) -> str:
    return (SOURCES / f"{stem}.py").read_text(encoding="utf-8")


def example() -> str:
    """Return the example of the guide, with a source and under a name that the tests choose by."""
    _, _, rest = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("```python\n")
    return rest.partition("```")[0].replace('"towards"', '"added-example"').replace("NNNN.NNNNN", "0000.00000")


DROPPED = [
    Dropped(noun="eraser", name="added-example", text=example()),
    Dropped(noun="eraser", name="added-eraser", text=source("added_eraser")),
    Dropped(noun="eraser", name="added-sampling", text=source("added_sampling")),
    Dropped(noun="attack", name="added-attack-prompt", text=source("added_attack_prompt")),
    Dropped(
        noun="attack",
        name="added-attack-gradient",
        text=source("added_attack_prompt")
        .replace("added-attack-prompt", "added-attack-gradient")
        .replace('"gradient"]] = "prompt"', '"gradient"]] = "gradient"'),
    ),
    *(
        Dropped(noun="probe", name=f"added-probe-{level}", text=source("added_probe_inside").replace("inside", level))
        for level in PROBES
    ),
    Dropped(noun="objective", name="added-objective", text=source("added_objective")),
    Dropped(noun="term", name="added-term", text=source("added_term")),
    Dropped(noun="transform", name="added-transform", text=source("added_transform")),
    Dropped(noun="selector", name="added-selector", text=source("added_selector")),
    Dropped(noun="finish", name="added-finish", text=source("added_finish")),
    Dropped(noun="metric", name="added-metric", text=source("added_metric")),
    Dropped(noun="benchmark", name="added-benchmark", text=source("added_benchmark")),
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package with all pieces and one entry point."""
    folder = tmp_path_factory.mktemp("installed")
    package, info = folder / "one_file_pieces", folder / "one_file_pieces-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    for piece in DROPPED:
        (package / f"{piece.name.replace('-', '_')}.py").write_text(piece.text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: one-file-pieces\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\npieces = one_file_pieces\n")
    sys.path.insert(0, str(folder))
    registry.refresh()
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "one_file_pieces"]:
        del sys.modules[name]
    registry.refresh()


@pytest.fixture(scope="module")
def outside(installed: Path) -> str:
    """Output of the contract's tests and of `commands_list_it.py` in one Python process that has the package."""
    nouns = ("erasers", "guidances", "attacks", "probes", "benchmarks", "metrics")
    files = [f"tests/contract/test_{noun}.py" for noun in nouns] + ["tests/contract/one_file/commands_list_it.py"]
    paths = os.pathsep.join([str(installed), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", *files, "-k", "added"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("piece", DROPPED, ids=lambda piece: piece.name)
def test_it_is_found_and_is_a_documented_piece(piece: Dropped, installed: Path) -> None:
    kind = extension_points()[piece.noun].get(piece.name)
    assert kind.__module__ == f"one_file_pieces.{piece.name.replace('-', '_')}"
    pieces.check(kind, frozen=piece.noun != "metric")
    assert len(piece.text.splitlines()) <= 60


def test_each_is_held_to_the_contract_of_its_extension_point(outside: str) -> None:
    held = {piece.name for piece in DROPPED if piece.noun in ("eraser", "attack", "probe", "benchmark", "metric")}
    assert all(re.search(rf"^PASSED \S*[\[-]{name}\]", outside, re.MULTILINE) for name in {*held, "added-guidance"})


def test_each_appears_in_the_lists_and_help_of_the_command(outside: str) -> None:
    for piece in DROPPED:
        assert f"::test_added_is_listed[{piece.noun}-{piece.name}]" in outside
    for words in ("pieces", "methods", "remove", "attack", "evaluate"):
        assert f"::test_added_is_shown[{words}-" in outside


SHAPES: list[Mapping[str, Any]] = [
    {"keep": {"added-term": 1.0}},
    {"gradients": ["added-transform"]},
    {"gradients": [{"name": "added-transform", "factor": 0.25}]},
    {"sites": "added-selector"},
    {"finish": ["added-finish"]},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_piece_of_training_is_chosen_by_name_in_the_settings_of_an_eraser(
    shape: Mapping[str, Any], installed: Path
) -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    before = backbone.fingerprint()
    tune = ERASERS.make("tune", steps=2, lr=1e-3, objective="added-objective", shape=shape)
    edit = tune.fit([Concept(target="cat", preserve=("dog",))], FitContext(backbone=backbone))
    assert isinstance(edit, WeightEdit)
    assert edit.changes
    assert backbone.fingerprint() == before
    assert ERASERS.make("tune", **edit.metadata.settings) == tune


def test_a_transform_a_selector_and_a_finish_act(installed: Path) -> None:
    def moved(**shape: Any) -> dict[str, torch.Tensor]:
        backbone = backbone_of(tiny.sd1())
        tune = ERASERS.make("tune", steps=1, lr=1e-3, objective="added-objective", shape=shape)
        edit = tune.fit([Concept(target="cat")], FitContext(backbone=backbone))
        assert isinstance(edit, WeightEdit)
        weights = backbone.parameters(edit.changes.__contains__)
        return {name: change.of(weights[name].detach()) for name, change in edit.changes.items()}

    plain = moved()
    for shape in ({"gradients": ["added-transform"]}, {"finish": ["added-finish"]}):
        for name, half in moved(**shape).items():
            torch.testing.assert_close(half, plain[name] / 2, rtol=1e-3, atol=1e-6)
    assert len(moved(sites="added-selector")) == 2
