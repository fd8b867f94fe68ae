"""Quantiles against tables, closed forms and what they promise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure.eval.stats.quantiles import beta_cdf, beta_quantile, clopper_pearson, student_t


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062047), (2, 4.3026527), (5, 2.5705818), (30, 2.0422725), (100, 1.9839715)]
)
def test_students_t_is_the_tables(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=1e-7)


def test_students_t_approaches_the_normal_quantile() -> None:
    assert student_t(1_000_000) == pytest.approx(1.9599640, abs=1e-5)
    assert student_t(1, 0.5) == pytest.approx(1.0)  # of Cauchy's distribution, by symmetry


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_beta_distribution_counts_binomial_tails(a: int, b: int, x: float) -> None:
    n = a + b - 1
    tail = sum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert beta_cdf(x, a, b) == pytest.approx(tail, abs=1e-12)
    assert beta_cdf(beta_quantile(x, a, b), a, b) == pytest.approx(x, abs=1e-9)


def test_the_exact_interval_of_all_and_of_none() -> None:
    assert clopper_pearson(40, 40) == pytest.approx((0.025 ** (1 / 40), 1.0))
    assert clopper_pearson(0, 40) == pytest.approx((0.0, 1 - 0.025 ** (1 / 40)))
    assert clopper_pearson(40, 40)[1] == 1.0
    assert clopper_pearson(0, 40)[0] == 0.0
    assert clopper_pearson(4, 10) == pytest.approx((0.1215523, 0.7376219), abs=1e-6)  # of the table


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("confidence", [0.95, 0.995])
def test_the_exact_interval_covers_at_least_as_often_as_it_says(share: float, confidence: float) -> None:
    n = 60
    chance = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    held = [low <= share <= high for low, high in (clopper_pearson(k, n, confidence) for k in range(n + 1))]
    assert sum(p for p, holds in zip(chance, held, strict=True) if holds) >= confidence
