"""The curve of distil-and-reset: what counts as kept, half-lives, and where a fit ends."""

import json
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from docs.tables import ablations
from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.erasers import make_eraser
from erasure.erasers.absent import Absent
from erasure.training.absence import images
from erasure.training.context import FitContext
from experiments import distil_reset
from experiments.ablate_absent import Bench, bench_of, fitted
from experiments.distil_reset import half_life, kept_share, main, named, point
from tests import tiny
from tests.eval import world


def bench(work: Path, stops: list[int], under: str | None = None) -> Bench:
    aim = cast("Any", SimpleNamespace(concept=Concept(target="cat", preserve=("dog",))))
    return named(
        Bench(
            pipe=tiny.sd1(), aim=aim, held_out=(), options=Namespace(work=work, stops=stops, under=under), judge=None
        ),
        "row",
    )


def test_a_fit_ends_at_the_first_stop_that_is_enough_and_is_not_made_again(tmp_path: Path) -> None:
    row = bench(tmp_path, [1, 2, 4])
    eraser = Absent(**{**Absent.quick, "steps": 4})
    looked: list[int] = []
    curve = fitted(row, eraser, lambda done: looked.append(done) or done >= 2)
    assert (looked, curve["steps"], list(curve["cpu_seconds_at"])) == ([1, 2], 2, ["1", "2"])
    assert sorted(file.name for file in row.work.glob("*.safetensors")) == ["1.safetensors", "2.safetensors"]
    one, two = (WeightEdit.load(row.work / f"{stop}.safetensors") for stop in (1, 2))
    assert any(not two.changes[name].of(c.delta).equal(c.delta.double()) for name, c in one.changes.items())
    assert fitted(row, eraser, lambda _: pytest.fail("it is fitted again")) == curve


def test_a_point_of_other_settings_is_fitted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def stopped(bench: Bench, *_: object) -> None:
        folders.append(bench.work)
        raise KeyboardInterrupt

    monkeypatch.setattr(distil_reset, "fitted", stopped)
    row = bench(tmp_path, [1, 2])
    vars(row.options).update(concept="cat", settings={}, back=0.9, images=1, kept=2)
    for changes in ({}, {"gold": "some"}, {"settings": {"lr": 0.1}}, {"stops": [4]}, {"back": 0.8}, {"under": "uce"}):
        other = replace(row, options=Namespace(**vars(row.options) | changes))
        with pytest.raises(KeyboardInterrupt):
            point(other, 0.5, 1.0)
    same, again, *others = folders
    assert same == again
    assert len({same, *others}) == 5


def test_images_that_rows_share_are_no_cost_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, sampled = 0.0, images._sampled

    def slowly(*arguments: Any) -> dict[str, torch.Tensor]:
        nonlocal now
        now += 100
        return sampled(*arguments)

    monkeypatch.setattr(time, "process_time", lambda: now)
    monkeypatch.setattr(images, "_sampled", slowly)
    eraser = Absent(**{**Absent.quick, "steps": 1})
    first, second = (fitted(named(bench(tmp_path, []), name), eraser) for name in ("first", "second"))
    assert first["seconds_of_images"] == now > 0
    assert second["seconds_of_images"] == 0
    assert [row["cpu_seconds"] for row in (first, second)] == [0, 0]
    assert first["cpu_seconds_at"] == second["cpu_seconds_at"] == {"1": 0}


def test_a_fit_that_stands_on_a_closed_form_keeps_both(tmp_path: Path) -> None:
    row = bench(tmp_path, [], under="uce")
    fitted(row, Absent(**{**Absent.quick, "steps": 0}))
    kept = WeightEdit.load(row.work / "0.safetensors")
    alone = make_eraser("uce").fit([row.aim.concept], FitContext(backbone=backbone_of(row.pipe)))
    assert isinstance(alone, WeightEdit)
    weight = next(iter(alone.changes))
    old = backbone_of(row.pipe).parameters(weight.__eq__)[weight].data
    torch.testing.assert_close(kept.changes[weight].of(old), alone.changes[weight].of(old), rtol=1e-4, atol=1e-5)


def test_a_row_needs_no_anchor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tinyworld, "load", world.pipeline)
    monkeypatch.setattr(tinyworld, "load_oracle", world.oracle)
    options = {"concept": "dog", "images": 3, "kept": 6, "work": tmp_path, "name": "row"}
    for anchor in (None, "house"):
        row = bench_of(Namespace(anchor=anchor, **options))
        assert row.aim.concept.anchor == (anchor or "")
        assert len(row.held_out) == 3


def test_what_stays_is_near_and_far_together() -> None:
    assert kept_share({"near": [1, 0], "far": [1, 1, 1, 0]}) == pytest.approx(4 / 6)


def test_the_half_life_is_where_half_of_the_original_is_back() -> None:
    assert half_life({"5": 0.0, "10": 0.0, "100": 0.8}, original=0.8) == pytest.approx((10 * 100) ** 0.5)
    assert half_life({"5": 0.0, "100": 0.39}, original=0.8) is None


def test_the_table_has_the_references_and_every_share(tmp_path: Path) -> None:
    plain = {"seen": 0.9, "near": [1, 1], "far": [1, 0]}
    record = {
        "concept": "dog",
        "images": 2,
        "references": {"original": {"plain": plain, "relearn": {"5": 0.9}, "half_life": 5.0}},
        "points": [
            {
                "share": 0.3,
                "steps": 400,
                "cpu_seconds": 61.0,
                "back": False,
                "stops": {"400": {**plain, "seen": 0.0, "far": [0, 0]}},
                "relearn": {"5": 0.1},
                "half_life": None,
            }
        ],
        "provenance": {},
    }
    folder = tmp_path / "distil-reset" / "dog"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    lines = ablations.distil_reset("distil-reset/*/run.json", tmp_path).splitlines()
    assert lines[0] == "| concept | start | steps | CPU s | seen | kept | after 5 | half-life |"
    assert lines[2:4] == [
        "| dog | original | – | – | 0.90 | 0.75 | 0.90 | 5 |",
        "| dog | 0.3 noise | 400, not back | 61 | 0.00 | 0.50 | 0.10 | > 5 |",
    ]
    assert "No result" in ablations.distil_reset("nothing/*/run.json", tmp_path)


def test_wrong_options_end_before_anything_is_loaded() -> None:
    with pytest.raises(SystemExit):
        main(["--shares", "much"])
