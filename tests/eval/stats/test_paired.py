"""Paired comparisons against known answers and against their own promises."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.errors import InputError
from erasure.eval.stats.paired import mcnemar, paired_bootstrap


def test_a_constant_change_has_no_width() -> None:
    before = np.array([0.1, 0.5, 0.9, 0.3])
    found = paired_bootstrap(before, before + 0.25)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.n == 4


def test_the_mean_is_of_all_pictures_and_not_of_the_last() -> None:
    found = paired_bootstrap([0, 0, 0, 0], [0, 0, 0, 8])
    assert found.value == 2.0
    assert found.low == 0.0
    assert found.high > 2.0


def test_bootstrap_approaches_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(size=2_000)
    after = before + rng.normal(0.3, 0.5, size=2_000)
    found = paired_bootstrap(before, after)
    half = 1.959964 * (after - before).std(ddof=1) / 2_000**0.5
    mean = (after - before).mean()
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_pairing_takes_out_what_the_two_share() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(0, 10, size=400)
    after = before + rng.normal(0.5, 0.1, size=400)
    paired = paired_bootstrap(before, after)
    shuffled = paired_bootstrap(before, rng.permutation(after))
    assert paired.low > 0.45
    assert shuffled.high - shuffled.low > 20 * (paired.high - paired.low)


def test_coverage_of_equal_means() -> None:
    rng = np.random.default_rng(3)
    draws = [
        paired_bootstrap(np.zeros(60), rng.normal(size=60), resamples=400, confidence=0.9, seed=at) for at in range(300)
    ]
    # 300 draws of a share near 0.9 have a standard error of 0.017; small samples cover a little less.
    assert 0.83 < np.mean([found.low <= 0 <= found.high for found in draws]) < 0.96


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_bootstrap_is_repeatable_mirrored_and_holds_its_value(values: list[float]) -> None:
    zeros = [0.0] * len(values)
    found, again, mirrored = (
        paired_bootstrap(*pair, resamples=200) for pair in ((zeros, values), (zeros, values), (values, zeros))
    )
    assert found == again
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-6)
    assert found.low - 1e-9 <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9


def test_bootstrap_refuses_what_is_no_pairing() -> None:
    with pytest.raises(InputError, match="expected pairs of values, got 2 before and 1 after"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="got 0 before and 0 after"):
        paired_bootstrap([], [])
    with pytest.raises(InputError, match="expected finite values, got nan"):
        paired_bootstrap([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(InputError, match="confidence in"):
        paired_bootstrap([1.0], [1.0], confidence=95.0)


@pytest.mark.parametrize(
    ("lost", "gained", "p_value"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),  # 2 / 2
        (5, 0, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (4, 4, 1.0),  # twice the tail would be above 1
    ],
)
def test_mcnemar_is_the_binomial_tail(lost: int, gained: int, p_value: float) -> None:
    before = np.array([True] * lost + [False] * gained + [True] * 7 + [False] * 3)
    after = np.array([False] * lost + [True] * gained + [True] * 7 + [False] * 3)
    found = mcnemar(before, after)
    assert (found.lost, found.gained, found.n) == (lost, gained, lost + gained + 10)
    assert found.p_value == pytest.approx(p_value)


def test_mcnemar_of_many_pairs_is_near_the_chi_squared_one() -> None:
    before = np.array([True] * 1_100 + [False] * 1_000 + [True] * 5_000)
    after = np.array([False] * 1_100 + [True] * 1_000 + [True] * 5_000)
    statistic = (abs(1_100 - 1_000) - 1) ** 2 / 2_100
    assert mcnemar(before, after).p_value == pytest.approx(math.erfc((statistic / 2) ** 0.5), rel=0.02)


def test_mcnemar_of_thousands_of_pairs_takes_no_time() -> None:
    before = np.array([True] * 4_000 + [False] * 4_000)
    start = time.process_time()
    assert mcnemar(before, ~before).p_value == 1.0
    assert time.process_time() - start < 0.5  # with every coefficient from its factorials, 3 s


def test_mcnemar_refuses_what_is_no_pairing() -> None:
    with pytest.raises(InputError, match="got 2 before and 1 after"):
        mcnemar(np.array([True, False]), np.array([True]))
    with pytest.raises(InputError, match="got 0 before"):
        mcnemar(np.array([], bool), np.array([], bool))
