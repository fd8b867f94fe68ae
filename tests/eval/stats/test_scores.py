"""Rates and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure.errors import InputError, UnknownNameError
from erasure.eval.stats.quantiles import clopper_pearson
from erasure.eval.stats.scores import (
    LeastShare,
    Rate,
    Score,
    Setup,
    cosine_distances,
    kept_rate,
    shared_setup,
    wilson,
    written,
)


def test_wilson_solves_its_defining_equation() -> None:
    # The bounds are the shares p at which |hits/n - p| = z sqrt(p (1 - p) / n).
    for hits, n in [(0, 10), (3, 10), (10, 10), (57, 60), (400, 400)]:
        for bound in wilson(hits, n):
            if 0.0 < bound < 1.0:
                assert abs(hits / n - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5, abs=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    assert 0.0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1.0
    assert low < high
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low))


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n > 0"):
        Rate(hits=0, n=0)
    with pytest.raises(ValueError, match="hits <= n"):
        Rate(hits=3, n=2)


def test_kept_rate_ignores_what_the_original_missed() -> None:
    before = np.array([True, True, True, False])
    after = np.array([True, False, True, True])
    assert kept_rate(before, after) == Rate(hits=2, n=3)
    assert kept_rate(~before & False, after) is None


def test_small_numbers_keep_two_digits() -> None:
    assert written(0.5, 0.41, 0.592) == ["0.500", "0.410", "0.592"]
    assert written(0.00021, 0.00015, 0.0031) == ["0.0002", "0.0001", "0.0031"]
    assert written(2.4e-5, -1e-6, 3.1e-5) == ["0.000024", "-0.000001", "0.000031"]
    assert written(0.0) == ["0.000"]
    assert written(1e-12) == ["0.000000"]
    assert written(27.25) == ["27.250"]


def test_mean_score_has_the_textbook_standard_error() -> None:
    score = Score.mean([1.0, 2.0, 3.0, 4.0], unit="steps", higher_is_better=False)
    assert score.value == 2.5
    assert score.standard_error == pytest.approx((5 / 3) ** 0.5 / 2)
    assert score.per_image == (1.0, 2.0, 3.0, 4.0)
    assert Score.mean([1.0], unit="steps", higher_is_better=False).standard_error is None
    with pytest.raises(ValueError, match="at least one"):
        Score.mean([], unit="steps", higher_is_better=False)


def test_cosine_distance_of_equal_opposite_and_orthogonal_rows() -> None:
    a = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    b = np.array([[3.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine_distances(a, b) == pytest.approx([0.0, 2.0, 1.0, 0.0])


def test_the_mean_is_no_last_element_and_a_last_batch_of_one_counts_once() -> None:
    values = [0.0] * 64 + [1.0]
    score = Score.mean(values, unit="share", higher_is_better=True)
    assert score.value == pytest.approx(1 / 65)
    assert score.n == 65


def test_a_score_has_as_many_values_as_pictures() -> None:
    with pytest.raises(ValueError, match="one value an image, got 2 of 3"):
        Score(value=1.0, n=3, standard_error=None, unit="x", higher_is_better=True, per_image=(1.0, 2.0))
    with pytest.raises(ValueError, match="n > 0"):
        Score(value=1.0, n=0, standard_error=None, unit="x", higher_is_better=True)


def test_bounds_are_the_scores_own_or_students() -> None:
    mean = Score.mean([1.0, 2.0, 3.0, 4.0], unit="steps", higher_is_better=False)
    half = 3.1824463 * mean.standard_error  # of three degrees of freedom
    assert mean.bounds == pytest.approx((2.5 - half, 2.5 + half))
    assert Score.mean([1.0], unit="steps", higher_is_better=False).bounds is None
    share = Score.share(np.array([True] * 3 + [False] * 7), unit="share", higher_is_better=True)
    assert share.bounds == wilson(3, 10)
    assert share.per_image == (1.0,) * 3 + (0.0,) * 7
    assert share.as_json()["low"] == wilson(3, 10)[0]
    assert {"value", "n", "low", "high", "unit", "higher_is_better"} <= share.as_json().keys()


def test_the_least_of_several_shares_has_an_interval_that_all_have_together() -> None:
    def share(hits: int, n: int) -> Score:
        return Score.share(np.array([True] * hits + [False] * (n - hits)), unit="share", higher_is_better=True)

    setup = Setup(metric="efficacy")
    alone = LeastShare.of({"cat": share(9, 10)}, setup)
    assert (alone.concept, alone.value, alone.bounds) == ("cat", 0.9, clopper_pearson(9, 10))
    least = LeastShare.of({"cat": share(19, 20), "neon": share(9, 10), "gun": share(20, 20)}, setup)
    assert (least.concept, least.value, least.n) == ("neon", 0.9, 10)
    confidence = 1 - 0.05 / 3
    assert least.bounds == clopper_pearson(9, 10, confidence)
    assert least.bounds[0] < wilson(9, 10)[0]
    assert least.setup is not None
    assert "of 3" in least.setup.definition
    assert least.as_json()["concept"] == "neon"
    few = LeastShare.of({"cat": share(2, 2), "neon": share(99, 100)}, setup)
    assert few.bounds == (
        clopper_pearson(2, 2, 0.975)[0],
        clopper_pearson(99, 100, 0.975)[1],
    )  # what has few pictures may be the least


def test_the_interval_of_the_least_covers_it() -> None:
    # Twelve concepts, each gone in 0.9 of 60 pictures: the interval that the lowest has by itself fails often.
    rng, k, n = np.random.default_rng(0), 12, 60
    covered = {"least": 0, "alone": 0}
    for _ in range(400):
        drawn = rng.random((k, n)) < 0.9
        shares = {str(at): Score.share(claims, unit="share", higher_is_better=True) for at, claims in enumerate(drawn)}
        low, high = LeastShare.of(shares, Setup(metric="efficacy")).bounds or (0.0, 0.0)
        covered["least"] += low <= 0.9 <= high
        low, high = min(shares.values(), key=lambda share: share.value).bounds or (0.0, 0.0)
        covered["alone"] += low <= 0.9 <= high
    assert covered["least"] >= 0.95 * 400
    assert covered["alone"] < 0.9 * 400


def test_students_interval_of_few_pictures_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2_000):
        low, high = Score.mean(rng.normal(size=6), unit="x", higher_is_better=True).bounds or (0.0, 0.0)
        covered += low <= 0 <= high
    assert covered / 2_000 == pytest.approx(0.95, abs=0.015)  # with 1.96 it would be 0.89


@pytest.mark.parametrize(
    ("unit", "values", "bounds"),
    [
        ("100 x cosine of texts", [99.9, 100.0, 100.0, 100.0, 97.0], (None, 100.0)),
        ("oracle distance", [0.0, 0.0, 0.0, 0.3], (0.0, None)),
        ("share of attention", [0.9, 0.99, 1.0], (None, 1.0)),
        ("anything else", [0.0, 0.0, 0.0, 0.3], (None, None)),
    ],
)
def test_an_interval_stays_within_what_its_unit_can_be(
    unit: str, values: list[float], bounds: tuple[float | None, float | None]
) -> None:
    found = Score.mean(values, unit=unit, higher_is_better=True)
    free = Score.mean(values, unit="anything else", higher_is_better=True)
    assert found.bounds is not None
    assert free.bounds is not None
    expected = tuple(own if own is not None else other for own, other in zip(bounds, free.bounds, strict=True))
    assert found.bounds == expected


def test_wilsons_ends_are_exact() -> None:
    for n in (1, 10, 13, 40, 333):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0


SETUP = Setup(metric="clip_score", library="open_clip 3.3.0", backbone="ViT-B-32/openai", steps=20, guidance_scale=4.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backbone", "ViT-L-14/openai"), ("steps", 50), ("guidance_scale", 7.5), ("resize", "bilinear")],
)
def test_scores_of_different_protocols_share_no_column(field: str, value: object) -> None:
    other = Setup.from_json({**SETUP.as_json(), field: value})
    with pytest.raises(InputError, match=f"'CLIP': expected scores of one protocol, got 'uce' and 'esd' with {field} "):
        shared_setup("CLIP", {"uce": SETUP, "same": SETUP, "esd": other})


def test_a_column_has_the_protocol_that_all_its_scores_have() -> None:
    assert shared_setup("CLIP", {"uce": SETUP, "esd": Setup.from_json(SETUP.as_json())}) == SETUP
    with pytest.raises(InputError, match="a protocol for every score, got none for 'esd'"):
        shared_setup("CLIP", {"uce": SETUP, "esd": None})
    with pytest.raises(InputError, match="at least one score"):
        shared_setup("CLIP", {})


def test_a_protocol_that_cannot_be_read() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'backbone'"):
        Setup.from_json({"metric": "fid", "backbon": "inception"})
    with pytest.raises(InputError, match="expected a metric"):
        Setup.from_json({"backbone": "inception"})
