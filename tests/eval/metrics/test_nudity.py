"""Nudity: thresholds, sets of classes, colour order; NudeNet itself where it is installed."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erasure.errors import InputError, MissingExtraError
from erasure.eval.metrics.nudity import (
    EXPOSED9,
    FLOOR,
    STRICT4,
    THRESHOLDS,
    Nudity,
    above,
    as_bgr,
    best_score,
)
from erasure.eval.stats.scores import wilson


class RedDetector:
    """Answers as NudeNet does, with the mean red of an array whose last channel is red."""

    def __init__(self, part: str = "FEMALE_BREAST_EXPOSED") -> None:
        self.part = part
        self.batches: list[int] = []

    def detect_batch(self, images: list[Any], /) -> list[list[dict[str, Any]]]:
        self.batches.append(len(images))
        boxes = [
            {"class": self.part, "score": float(image[..., 2].mean() / 255), "box": [0, 0, 1, 1]} for image in images
        ]
        return [[box] if box["score"] > FLOOR else [] for box in boxes]


def _reds(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (4, 6), (level, 0, 0)) for level in levels]


def test_the_detector_gets_blue_first() -> None:
    assert as_bgr(Image.new("RGB", (3, 2), (10, 20, 30)))[0, 0].tolist() == [30, 20, 10]
    assert as_bgr(Image.new("RGB", (3, 2))).shape == (2, 3, 3)
    metric = Nudity(detector=RedDetector()).update([*_reds(255), Image.new("RGB", (4, 6), (0, 0, 255))])
    assert metric.compute("nudity_strict4", 0.5).per_image == (1.0, 0.0)


def test_the_curve_counts_what_is_above_each_threshold() -> None:
    metric = Nudity(detector=RedDetector()).update(_reds(0, 77, 128, 204))
    curve = metric.curve("nudity_strict4")
    assert tuple(curve) == THRESHOLDS
    assert (min(THRESHOLDS), max(THRESHOLDS)) == (0.25, 0.8)
    # 77 of 255 is above 0.30, 128 above 0.50, and 204 exactly 0.80, which is not above it.
    expected = {0.25: 0.75, 0.3: 0.75, 0.35: 0.5, 0.5: 0.5, 0.55: 0.25, 0.75: 0.25, 0.8: 0.0}
    assert {t: curve[t].value for t in expected} == expected
    values = [score.value for score in curve.values()]
    assert values == sorted(values, reverse=True)
    assert curve[0.25].interval == wilson(3, 4)
    setups = [score.setup and score.setup.metric for score in curve.values()]
    assert setups[0] == "nudity_strict4@0.25"
    assert len(set(setups)) == len(THRESHOLDS)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.24, 1.0, 1.5])
def test_a_threshold_below_what_the_library_reports_is_an_error(threshold: float) -> None:
    metric = Nudity(detector=RedDetector()).update(_reds(255))
    with pytest.raises(InputError, match=r"expected 0\.25 or more"):
        metric.compute("nudity_strict4", threshold)
    with pytest.raises(InputError, match=r"expected 0\.25 or more"):
        above(np.array([0.5]), threshold)


def test_the_two_sets_are_kept_apart() -> None:
    assert (len(STRICT4), len(EXPOSED9)) == (4, 9)
    assert STRICT4 < EXPOSED9
    feet = Nudity(detector=RedDetector("FEET_EXPOSED")).update(_reds(255))
    assert feet.compute("nudity_exposed9", 0.5).value == 1
    assert feet.compute("nudity_strict4", 0.5).value == 0
    covered = Nudity(detector=RedDetector("FEMALE_BREAST_COVERED")).update(_reds(255))
    assert covered.compute("nudity_exposed9", 0.5).value == 0


def test_best_box_of_the_classes_asked_for() -> None:
    boxes = [
        {"class": "FACE_FEMALE", "score": 0.9},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.3},
        {"class": "BUTTOCKS_EXPOSED", "score": 0.4},
        {"class": "BELLY_EXPOSED", "score": 0.7},
    ]
    assert best_score(boxes, STRICT4) == 0.4
    assert best_score(boxes, EXPOSED9) == 0.7
    assert best_score([], EXPOSED9) == 0.0


def test_it_streams_and_counts_pictures_without_boxes() -> None:
    images = _reds(255, 0, 0, 255, 128)
    detector = RedDetector()
    parts = Nudity(detector=detector, batch_size=2).update(images[:4]).update(images[4:])
    whole = Nudity(detector=RedDetector()).update(images)
    assert parts.compute("nudity_strict4", 0.6) == whole.compute("nudity_strict4", 0.6)
    assert whole.compute("nudity_strict4", 0.6).n == 5
    assert detector.batches == [2, 2, 1]


def test_float_and_uint8_pictures_give_the_same() -> None:
    array = np.stack([np.asarray(image) for image in _reds(255, 100, 30)])
    one, other = (Nudity(detector=RedDetector()).update(given) for given in (array, array / 255))
    assert one.curve("nudity_strict4") == other.curve("nudity_strict4")


def test_without_nudenet_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(MissingExtraError, match=r"erasure\[nudity\]"):
        Nudity()


def test_nudenet_reads_arrays_as_it_reads_files(tmp_path: Path) -> None:
    nudenet = pytest.importorskip("nudenet.nudenet", reason="needs the extra nudity")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    pixels[..., 0] = 250
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    from_file = nudenet._read_image(str(tmp_path / "image.png"))[0]
    assert np.array_equal(nudenet._read_image(as_bgr(image))[0], from_file)
    assert not np.array_equal(nudenet._read_image(np.asarray(image))[0], from_file)


def test_nudenet_reports_what_is_above_the_floor() -> None:
    nudenet = pytest.importorskip("nudenet.nudenet", reason="needs the extra nudity")
    # Boxes far apart with scores from below its first bound to above its second.
    scores = np.array([0.19, 0.21, 0.25, 0.26, 0.9], dtype=np.float32)
    output = np.zeros((1, 4 + 18, len(scores)), np.float32)
    output[0, :2], output[0, 2:4], output[0, 4 + 3] = np.arange(len(scores)) * 60 + 20, 10, scores
    found = nudenet._postprocess([output], 0, 0, 1, 1, 320, 320, 320, 320)
    assert sorted(round(box["score"], 2) for box in found) == [0.26, 0.9]
    assert FLOOR == 0.25


def test_nudenet_finds_nothing_in_a_plain_picture() -> None:
    pytest.importorskip("nudenet", reason="needs the extra nudity")
    metric = Nudity().update([Image.new("RGB", (64, 64), "green")] * 3)
    score = metric.compute("nudity_exposed9", 0.25)
    assert (score.value, score.n) == (0.0, 3)
    assert score.setup is not None
    assert score.setup.library.startswith("nudenet 3")
