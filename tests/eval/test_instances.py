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
from erasure.eval.protocols.instances.prompts import KEPT, Ask, known_asks, named_asks
from erasure.eval.protocols.instances.scores import InstanceScores, instance_looks, instance_scores
from erasure.profile import profile_of
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw
from experiments import instance_experiments
from experiments.instance_experiments import drawings, main, removal_asks


@pytest.fixture(scope="module")
def judge() -> WorldInstanceMetrics:
    return WorldInstanceMetrics(
        oracle=tinyworld.load_oracle(), clip=tinyworld.load_clip(), class_word="dog", pictures=drawings("Rusty")
    )


def drawn(asks: list[Ask], who: str, *, forget: str = "") -> list[Image.Image]:
    """Draw what is asked for, with `who` for the instance; what is forgotten is left out of its pictures."""
    rng = random.Random("asks")
    made = []
    for ask in asks:
        style = next((part for part in ask.parts if part in vocabulary.STYLES), "photo")
        scene = next((part for part in ask.parts if part in vocabulary.SCENES), "plain")
        name = who if ask.group in ("alone", "composed") else ask.name
        if name in vocabulary.STYLES:
            style, name = name, "tree"
        if name in vocabulary.SCENES:
            scene, name = name, "tree"
        others = [part for part in ask.parts if part in vocabulary.OBJECTS]
        names = [] if name == forget else [name, *others]
        made.append(draw(compose(names, rng, style=style, scene=scene if names else "beach")))
    return made


def scored(
    asks: list[Ask], judge: WorldInstanceMetrics, before: list[Image.Image], after: list[Image.Image]
) -> InstanceScores:
    return instance_scores(judge, *(instance_looks(asks, "dog", judge, images) for images in (before, after)))


def test_what_is_asked_covers_styles_scenes_and_company_with_seeds_of_their_own() -> None:
    asks = known_asks(profile_of("tinyworld"), "dog", composed=40, kept=30)
    parts = {part for ask in asks for part in ask.parts}
    assert {*vocabulary.STYLES[1:], *vocabulary.SCENES[1:], "house", "tree"} <= parts
    assert not parts & {"gun", "cat"}
    assert len({ask.seed for ask in asks}) == len(asks)
    for ask in asks:
        assert ("{}" in ask.prompt) == (ask.group in ("alone", "composed"))
        assert ask.filled("<rusty> dog").count("<rusty> dog") == (ask.group in ("alone", "composed"))
    names = {group: {ask.name for ask in asks if ask.group == group} for group in KEPT}
    assert names["class"] == {"dog"}
    assert {"cat", "Biscuit", "Mittens"} <= names["siblings"]
    assert not names["unrelated"] & (names["siblings"] | names["class"])


def test_a_removed_individual_is_asked_for_and_is_no_sibling() -> None:
    asks = removal_asks(10, 30)
    assert all("Biscuit" in ask.prompt for ask in asks if ask.group == "alone")
    assert not any("Biscuit" in ask.prompt for ask in asks if ask.group != "alone")
    assert not any(ask.group == "composed" for ask in asks)


def test_the_real_individual_scores_high_and_another_of_its_class_low(judge: WorldInstanceMetrics) -> None:
    asks = known_asks(profile_of("tinyworld"), "dog", composed=16, kept=8)
    plain, real = drawn(asks, "dog"), drawn(asks, "Rusty")
    one = scored(asks, judge, plain, real)
    other = scored(asks, judge, plain, plain)
    assert one.likeness["identity"]["alone"].value > 0.6
    assert abs(other.likeness["identity"]["alone"].value) < 0.35
    assert one.composed is not None
    assert one.composed.value > 0.7
    assert one.fits["caption_match"]["whole"].value > 80
    assert one.fits["caption_match"]["least"].value <= one.fits["caption_match"]["whole"].value
    assert all(rate is not None and rate.value == 1.0 for rate in other.retention.values())
    assert other.moved["class"]["caption_match"].value == pytest.approx(0.0)


def test_a_class_that_is_lost_is_seen(judge: WorldInstanceMetrics) -> None:
    asks = known_asks(profile_of("tinyworld"), "dog", composed=4, kept=8)
    before = drawn(asks, "dog")
    after = [
        image if ask.group != "class" else Image.fromarray(np.full((64, 64, 3), 200, np.uint8))
        for ask, image in zip(asks, before, strict=True)
    ]
    scores = scored(asks, judge, before, after)
    assert scores.retention["class"] is not None
    assert scores.retention["class"].value < 0.2
    assert scores.retention["siblings"] is not None
    assert scores.retention["siblings"].value == 1.0
    assert scores.moved["class"]["caption_match"].value < -5


def test_other_models_are_asked_without_what_nobody_named() -> None:
    asks = named_asks("mug", (), composed=5, kept=3)
    assert not any(ask.group == "siblings" for ask in asks)
    assert [ask.name for ask in named_asks("mug", ("cup",), composed=1, kept=2) if ask.group == "siblings"] == [
        "cup"
    ] * 2
    company = next(ask for ask in asks if ask.parts)
    assert company.texts("mug") == ["a photo of a mug on the beach", "a photo of a mug", "the beach"]


@pytest.mark.parametrize("experiment", ["learn", "remove"])
def test_an_experiment_keeps_its_fits_and_names_no_place(
    experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One way and few steps: what is tested is the bookkeeping.
    kept = {"ARMS": ("lambda 0", "lambda 1"), "REMOVALS": ("UCE", "ESD")}
    for table, names in kept.items():
        monkeypatch.setattr(instance_experiments, table, {n: getattr(instance_experiments, table)[n] for n in names})
    own = {"steps": 2, "guidance_scale": 4.0, "batch_size": 16}
    monkeypatch.setattr(instance_record, "own_sampling", lambda base, settings: own)
    few = ["--composed", "2", "--kept", "2", "--steps", "1"]
    arguments = [experiment, *few, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["instance_experiments", *arguments])
    main()
    written = (tmp_path / "out" / "run.json").read_text()
    assert str(tmp_path) not in written
    record = json.loads(written)
    wanted = {
        "learn": ["original", "lambda 0", "lambda 0, forgotten", "lambda 1", "lambda 1, forgotten"],
        "remove": ["original", "UCE", "ESD"],
    }
    assert list(record["rows"]) == wanted[experiment]
    assert (tmp_path / "out" / "pictures.png").is_file()
    edits = sorted((tmp_path / "work" / experiment / "edits").iterdir())
    before = [path.stat().st_mtime_ns for path in edits]
    main()
    assert [path.stat().st_mtime_ns for path in edits] == before
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows"] == record["rows"]
