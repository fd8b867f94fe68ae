"""The residue: its fixed points, its interval, and the dose that brings half back."""

import numpy as np
import pytest

from erasure.errors import InputError
from erasure.eval.stats.residue import half_dose, residue

NONE, ALL, QUARTER = [0.0] * 16, [1.0] * 16, [1.0] * 4 + [0.0] * 12


def test_the_original_has_residue_1_and_the_floor_0() -> None:
    assert residue(ALL, ALL, NONE).value == 1
    assert residue(NONE, ALL, NONE).value == 0
    assert residue(QUARTER, ALL, NONE).value == pytest.approx(0.25)
    values = np.random.default_rng(0).normal(2, 0.1, 30).tolist()
    assert residue(values, values, 0.0).value == 1


def test_a_rate_of_0_has_an_interval_with_width() -> None:
    rho = residue(NONE, ALL, NONE)
    assert rho.low < -0.05
    assert 0.05 < rho.high < 0.25


def test_a_rate_against_a_known_floor_has_an_interval_too() -> None:
    rho = residue(NONE, ALL, 0.0)
    assert rho.value == 0
    assert 0.05 < rho.high < 0.25
    assert residue(QUARTER, ALL, 0.0).value == pytest.approx(0.25)
    assert residue(ALL, ALL, 0.0).high > 1


def test_values_with_a_floor_between_0_and_1_are_no_rates() -> None:
    rho = residue(NONE, ALL, [0.4] * 16)
    assert rho.value == pytest.approx(-0.4 / 0.6)
    assert rho.low == rho.high == rho.value


def test_a_wider_confidence_has_a_wider_interval() -> None:
    narrow, wide = residue(QUARTER, ALL, NONE), residue(QUARTER, ALL, NONE, confidence=0.99)
    assert wide.low < narrow.low
    assert wide.high > narrow.high


def test_an_original_like_its_floor_has_no_residue() -> None:
    assert residue(NONE, NONE, NONE) is None
    assert residue(ALL, ALL, ALL) is None
    assert residue([0.1, -0.1] * 8, [0.1, -0.1] * 8, 0.0) is None


def test_intervals_of_rates_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        erased, original, floor = (rng.binomial(1, p, 24).astype(float).tolist() for p in (0.3, 0.9, 0.1))
        rho = residue(erased, original, floor, seed=i)
        covered += rho is not None and rho.low <= 0.25 <= rho.high
    assert covered >= 184, "95 % less three standard errors"


def test_paired_values_have_a_narrower_interval_than_their_spread() -> None:
    common = np.random.default_rng(2).normal(1, 0.5, 40)
    rho = residue((0.5 * common).tolist(), common.tolist(), 0.0)
    assert rho.high - rho.low < 0.05


def test_an_empty_row_is_an_error() -> None:
    with pytest.raises(InputError, match="residue: expected values of each row"):
        residue([], ALL, NONE)


def test_half_dose_is_interpolated_in_the_logarithm() -> None:
    assert half_dose([1.0, 4.0], [0.25, 0.75], [1.0, 1.0]) == pytest.approx(2)
    assert half_dose([8.0, 4.0, 3.0], [0.0, 1.0, 1.0], [1.0] * 3) == pytest.approx(32**0.5)
    assert half_dose([1.0, 2.0], [0.6, 0.7], [1.0, 1.0]) == 1
    assert half_dose([1.0, 2.0], [0.1, 0.2], [1.0, 1.0]) is None
    assert half_dose([0.0, 2.0], [0.0, 1.0], [1.0, 1.0]) == 1


def test_where_the_original_is_destroyed_nothing_is_back() -> None:
    assert half_dose([0.01, 0.1], [0.0, 0.06], [1.0, 0.06]) is None
    assert half_dose([0.01, 0.03, 0.1], [0.0, 1.0, 0.1], [1.0, 1.0, 0.1]) == pytest.approx(0.01 * 3**0.5)


def test_half_dose_finds_the_half_life_of_a_learning_curve() -> None:
    steps = np.geomspace(1, 200, 60)
    curve = 1 - 2 ** (-steps / 17)
    assert half_dose(steps.tolist(), curve.tolist(), [1.0] * 60) == pytest.approx(17, rel=0.01)
