"""The measure of an instance: what is asked, and what the tiny world's oracle says of its own drawings."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erasure import tinyworld
from erasure.eval.protocols.instances import record as instance_record
from erasure.eval.protocols.instances.metrics import WorldInstanceMetrics
from erasure.eval.protocols.instances.prompts import KEPT, InstanceRequest, class_requests, known_requests
from erasure.eval.protocols.instances.scores import InstanceScores, instance_scores, read_instance
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw
from experiments import instance_experiments
from experiments.instance_experiments import drawings, main, removal_requests


@pytest.fixture(scope="module")
def judge() -> WorldInstanceMetrics:
    return WorldInstanceMetrics(
        oracle=tinyworld.load_oracle(), clip=tinyworld.load_clip(), class_word="dog", images=drawings("Rusty")
    )


def drawn(requests: list[InstanceRequest], who: str, *, forget: str = "") -> list[Image.Image]:
    """Draw what is asked for, with `who` for the instance; what is forgotten is left out of its pictures."""
    rng = random.Random("asks")
    made = []
    for request in requests:
        style = next((part for part in request.parts if part in vocabulary.STYLES), "photo")
        scene = next((part for part in request.parts if part in vocabulary.SCENES), "plain")
        name = who if request.group in ("alone", "composed") else request.name
        if name in vocabulary.STYLES:
            style, name = name, "tree"
        if name in vocabulary.SCENES:
            scene, name = name, "tree"
        others = [part for part in request.parts if part in vocabulary.OBJECTS]
        names = [] if name == forget else [name, *others]
        made.append(draw(compose(names, rng, style=style, scene=scene if names else "beach")))
    return made


def scored(
    requests: list[InstanceRequest], judge: WorldInstanceMetrics, before: list[Image.Image], after: list[Image.Image]
) -> InstanceScores:
    return instance_scores(judge, *(read_instance(requests, "dog", judge, images) for images in (before, after)))


def test_what_is_asked_covers_styles_scenes_and_company_with_seeds_of_their_own() -> None:
    requests = known_requests(profile_of("tinyworld"), "dog", composed=40, kept=30)
    parts = {part for request in requests for part in request.parts}
    assert {*vocabulary.STYLES[1:], *vocabulary.SCENES[1:], "house", "tree"} <= parts
    assert not parts & {"gun", "cat"}
    assert len({request.seed for request in requests}) == len(requests)
    for request in requests:
        assert ("{}" in request.prompt) == (request.group in ("alone", "composed"))
        assert request.filled("<rusty> dog").count("<rusty> dog") == (request.group in ("alone", "composed"))
    names = {group: {request.name for request in requests if request.group == group} for group in KEPT}
    assert names["class"] == {"dog"}
    assert {"cat", "Biscuit", "Mittens"} <= names["siblings"]
    assert not names["unrelated"] & (names["siblings"] | names["class"])


def test_a_removed_individual_is_asked_for_and_is_no_sibling() -> None:
    requests = removal_requests(10, 30)
    assert all("Biscuit" in request.prompt for request in requests if request.group == "alone")
    assert not any("Biscuit" in request.prompt for request in requests if request.group != "alone")
    assert not any(request.group == "composed" for request in requests)


def test_the_real_individual_scores_high_and_another_of_its_class_low(judge: WorldInstanceMetrics) -> None:
    requests = known_requests(profile_of("tinyworld"), "dog", composed=16, kept=8)
    plain, real = drawn(requests, "dog"), drawn(requests, "Rusty")
    one = scored(requests, judge, plain, real)
    other = scored(requests, judge, plain, plain)
    assert one.likeness["identity"]["alone"].value > 0.6
    assert abs(other.likeness["identity"]["alone"].value) < 0.35
    assert one.composed is not None
    assert one.composed.value > 0.7
    assert one.fits["caption_match"]["whole"].value > 80
    assert one.fits["caption_match"]["least"].value <= one.fits["caption_match"]["whole"].value
    assert all(rate is not None and rate.value == 1.0 for rate in other.retention.values())
    assert other.moved["class"]["caption_match"].value == pytest.approx(0.0)


def test_a_class_that_is_lost_is_seen(judge: WorldInstanceMetrics) -> None:
    requests = known_requests(profile_of("tinyworld"), "dog", composed=4, kept=8)
    before = drawn(requests, "dog")
    after = [
        image if request.group != "class" else Image.fromarray(np.full((64, 64, 3), 200, np.uint8))
        for request, image in zip(requests, before, strict=True)
    ]
    scores = scored(requests, judge, before, after)
    assert scores.retention["class"] is not None
    assert scores.retention["class"].value < 0.2
    assert scores.retention["siblings"] is not None
    assert scores.retention["siblings"].value == 1.0
    assert scores.moved["class"]["caption_match"].value < -5


def test_other_models_are_asked_without_what_nobody_named() -> None:
    requests = class_requests("mug", (), composed=5, kept=3)
    assert not any(request.group == "siblings" for request in requests)
    assert [
        request.name for request in class_requests("mug", ("cup",), composed=1, kept=2) if request.group == "siblings"
    ] == ["cup"] * 2
    company = next(request for request in requests if request.parts)
    assert company.texts("mug") == ["a photo of a mug on the beach", "a photo of a mug", "the beach"]


@pytest.mark.parametrize("experiment", ["learn", "remove"])
def test_an_experiment_keeps_its_fits_and_names_no_place(
    experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One way and few steps: what is tested is the bookkeeping.
    kept = {"ARMS": ("lambda 0", "lambda 1"), "REMOVALS": ("UCE", "ESD")}
    for table, names in kept.items():
        monkeypatch.setattr(instance_experiments, table, {n: getattr(instance_experiments, table)[n] for n in names})
    own = SamplingSettings(steps=2, guidance_scale=4.0)
    monkeypatch.setattr(instance_record.InstanceRecord, "sampler", own)
    few = ["--composed", "2", "--kept", "2", "--steps", "1"]
    arguments = [experiment, *few, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["instance_experiments", *arguments])
    main()
    written = (tmp_path / "out" / "run.json").read_text()
    assert str(tmp_path) not in written
    record = json.loads(written)
    retained = {
        "learn": ["original", "lambda 0", "lambda 0, forgotten", "lambda 1", "lambda 1, forgotten"],
        "remove": ["original", "UCE", "ESD"],
    }
    assert list(record["rows"]) == retained[experiment]
    assert (tmp_path / "out" / "pictures.png").is_file()
    edits = sorted((tmp_path / "work" / experiment / "edits").iterdir())
    before = [path.stat().st_mtime_ns for path in edits]
    main()
    assert [path.stat().st_mtime_ns for path in edits] == before
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"] == record["rows"]
