"""Rates and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure.eval.scores import Rate, Score, cosine_distances, kept_rate, wilson


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
