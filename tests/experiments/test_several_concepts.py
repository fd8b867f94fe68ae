"""Two objects in one prompt, under each guidance and with one of them removed."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erasure import tinyworld
from erasure.progress import Progress
from erasure.tinyworld import vocabulary
from experiments import localised_removal, pairs, several_concepts
from experiments.pairs import PLAIN, guidances, pair_requests, sampled
from experiments.several_concepts import main


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> dict[str, Any]:
    # Few steps: what is tested is the bookkeeping.
    for module in (pairs, localised_removal, several_concepts):
        monkeypatch.setattr(module, "SAMPLER", replace(pairs.SAMPLER, steps=5))
    arguments = [*options, "--work", str(folder / "work"), "--out", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", ["several_concepts", *arguments])
    main()
    assert (folder / "out" / "pictures.png").is_file() or "--sweep" in options
    written = (folder / "out" / "run.json").read_text()
    assert str(folder) not in written  # a record that is committed names no place on a machine
    return json.loads(written)


def test_every_ordered_pair_is_asked_for_with_seeds_of_its_own() -> None:
    requests = pair_requests(4)
    n = len(vocabulary.OBJECTS)
    assert len(requests) == 4 * n * (n - 1) >= 4 * 500
    assert len({request.seed for request in requests}) == len(requests)
    assert {frozenset(request.pair) for request in requests if request.held_out} == vocabulary.HELD_OUT_PAIRS
    assert not {request.seed for request in requests} & {
        request.seed for request in pair_requests(4, first=1_000_000, prompts=20)
    }
    for request in requests[:50]:
        assert all(name in request.prompt for name in request.pair)


def test_each_arm_differs_from_the_others_and_plain_is_the_first() -> None:
    arms = guidances(20.0, 10.0)
    assert next(iter(arms)) == PLAIN
    assert arms[PLAIN] is None
    settings = {name: (type(arm).__name__, repr(arm)) for name, arm in arms.items()}
    assert len(set(settings.values())) == len(arms) == 5


def test_images_are_sampled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, requests, reports = tinyworld.load(), pair_requests(1, prompts=2), []
    first = sampled(pipe, requests, None, tmp_path, "plain", reports.append)
    monkeypatch.setattr(pairs, "sample", None)
    assert np.array_equal(first, sampled(pipe, requests, None, tmp_path, "plain", reports.append))
    assert reports == [Progress(2, 2, "plain")] * 2


def test_the_experiment_reports_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several_concepts, "TRACED", 1)
    record = run(monkeypatch, tmp_path, "--prompts", "4", "--seeds", "1")
    assert list(record["arms"]) == list(guidances(1.0, 1.0))
    for arm in record["arms"].values():
        assert arm["both"]["n"] == 4
        assert 0 <= arm["both"]["value"] + arm["neither"]["value"] <= 1
        assert len(arm["maps"]["overlap"]) == 5
        assert len(arm["maps"]["kept"]) == 4
        assert arm["frechet_distance"]["value"] > 0
    assert record["mcnemar"]["A-STAR against plain"]["n"] == 4


def test_removals_are_judged_where_both_were_drawn_and_outside_of_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(monkeypatch, tmp_path, "--localised", "--removals", "2", "--seeds", "1")
    arms = record["arms"]
    assert arms[PLAIN]["pixels_outside"] == 0
    assert arms["localised"]["pixels_outside"] < 0.1 * arms["a negative prompt"]["pixels_outside"]
    assert arms["localised"]["pixels_inside"] > 10 * arms["localised"]["pixels_outside"]
    assert record["n"] == 2
