"""Published aggregates on numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasure.errors import InputError
from erasure.eval.stats.aggregates import (
    UnlearnCanvas,
    decremental,
    erosion_slope,
    generalization_erosion,
    h_a,
    h_c,
    h_o,
    joint_rate,
    relative_retention,
    retention_accuracy,
    unlearning_accuracy,
)
from erasure.eval.stats.scores import Rate, Score, Setup

FRACTION = st.floats(0, 1)


def test_h_o_by_hand() -> None:
    # 3 / (1/0.5 + 1/0.8 + 1/0.4) = 3 / 5.75
    assert h_o(0.5, 0.8, 0.6) == pytest.approx(3 / 5.75)
    assert h_o(0, 1, 0) == 1.0
    assert h_c(0.5, 0.8) == pytest.approx(2 / (2 + 1.25))


def test_a_worst_value_makes_a_harmonic_mean_zero_instead_of_failing() -> None:
    assert h_o(1.0, 1.0, 0.0) == h_o(0.0, 0.0, 0.0) == h_o(0.0, 1.0, 1.0) == 0.0
    assert h_c(1, 1) == h_c(0, 0) == 0.0


@given(FRACTION, FRACTION, FRACTION)
def test_harmonic_means_lie_between_the_worst_part_and_the_mean(erased: float, kept: float, synonyms: float) -> None:
    parts = [1 - erased, kept, 1 - synonyms]
    assert min(parts) - 1e-9 <= h_o(erased, kept, synonyms) <= sum(parts) / 3 + 1e-9
    assert h_c(erased, kept) <= (1 - erased + kept) / 2 + 1e-9


@pytest.mark.parametrize("wrong", [1.01, 87.5, -0.1, float("nan")])
def test_a_percentage_is_refused_wherever_a_fraction_is_meant(wrong: float) -> None:
    calls = (
        lambda: h_o(wrong, 0.5, 0.5),
        lambda: h_o(0.5, wrong, 0.5),
        lambda: h_o(0.5, 0.5, wrong),
        lambda: h_c(wrong, 0.5),
        lambda: h_c(0.5, wrong),
        lambda: unlearning_accuracy([0.5, wrong]),
        lambda: retention_accuracy([wrong]),
        lambda: generalization_erosion([wrong], [0.5]),
        lambda: generalization_erosion([0.5], [wrong]),
        lambda: erosion_slope([0.0, wrong]),
        lambda: relative_retention(wrong, 0.5),
        lambda: relative_retention(0.5, wrong),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"expected a fraction in \[0, 1\]"):
            call()


def test_a_percentage_is_told_what_to_do() -> None:
    with pytest.raises(InputError, match=r"h_c\.specificity: .* got 87\.5\. Divide percentages by 100\."):
        h_c(0.1, 87.5)


def clip(value: float, unit: str = "100 x cosine", **setup: str) -> Score:
    return Score(
        value=value,
        n=10,
        standard_error=None,
        unit=unit,
        higher_is_better=True,
        setup=Setup(metric="clip_score", **setup),
    )


def test_h_a_is_a_difference_of_two_scores_measured_alike() -> None:
    assert h_a(clip(28.5), clip(20.25)) == 8.25
    assert h_a(clip(0.0), clip(3.0)) == -3.0
    with pytest.raises(InputError, match="one unit and protocol, got '100 x cosine' and 'cosine'"):
        h_a(clip(28.5), clip(0.2, unit="cosine"))
    with pytest.raises(InputError, match="one unit and protocol"):
        h_a(clip(28.5, backbone="ViT-B-32/openai"), clip(20.0, backbone="ViT-L-14/openai"))


def test_unlearn_canvas_counts_each_group_by_itself() -> None:
    found = UnlearnCanvas.of(
        np.array([True, False, False, False]), np.array([True, True, False]), np.array([True, False])
    )
    assert (found.ua, found.ira, found.cra) == (Rate(hits=3, n=4), Rate(hits=2, n=3), Rate(hits=1, n=2))
    with pytest.raises(ValueError, match="n > 0"):
        UnlearnCanvas.of(np.array([], bool), np.array([True]), np.array([True]))


def test_duge_measures_by_hand() -> None:
    assert unlearning_accuracy([0.1, 0.3]) == pytest.approx(0.8)
    assert retention_accuracy([0.5, 0.7, 0]) == pytest.approx(0.4)
    # The first loses 0.2, the second gains, which makes up for nothing.
    assert generalization_erosion([0.9, 0.5], [0.7, 0.9]) == pytest.approx(0.1)
    assert erosion_slope([0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.1)
    assert erosion_slope([0.1, 0.1, 0.1]) == 0.0
    assert erosion_slope([0, 1, 0]) == 0.0
    for call in (lambda: unlearning_accuracy([]), lambda: retention_accuracy([]), lambda: erosion_slope([0.1])):
        with pytest.raises(InputError, match="expected at least"):
            call()
    with pytest.raises(InputError, match="the same concepts, got 2 and 1"):
        generalization_erosion([0.9, 0.5], [0.7])


@given(st.lists(FRACTION, min_size=2, max_size=12))
def test_slope_is_that_of_a_least_squares_line(erosions: list[float]) -> None:
    reference = np.polyfit(np.arange(len(erosions)), erosions, 1)[0]
    assert erosion_slope(erosions) == pytest.approx(reference, abs=1e-9)


ORIGINAL = {"cat": 0.9, "gun": 0.8, "dog": 0.9, "car": 1.0}
STEPS = [
    {"cat": 0.0, "gun": 0.8, "dog": 0.7, "car": 1.0},
    {"cat": 0.4, "gun": 0.0, "dog": 0.6, "car": 0.9},  # cat comes back
]


def test_decremental_shows_a_target_that_comes_back() -> None:
    first, second = decremental(ORIGINAL, STEPS, targets=["cat", "gun"], near=["dog"], far=["car"])
    assert (first.step, first.ua, first.ra_near, first.ra_far) == (1, 1.0, 0.7, 1.0)
    assert first.ge == pytest.approx(0.1)
    assert second.ua == pytest.approx(0.8)
    assert (second.ra_near, second.ra_far, second.ge) == pytest.approx((0.6, 0.9, 0.2))
    assert erosion_slope([0.0, first.ge, second.ge]) == pytest.approx(0.1)
    (alone, _) = decremental(ORIGINAL, STEPS, targets=["cat", "gun"], far=["car"])
    assert alone.ra_near is None
    assert alone.ge == 0.0


def test_decremental_against_the_original_itself() -> None:
    (step,) = decremental(ORIGINAL, [ORIGINAL], targets=["cat"], near=["dog"], far=["car"])
    assert step.ge == 0.0
    assert step.ua == pytest.approx(1 - ORIGINAL["cat"])


def test_decremental_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(InputError, match="never erased, got 'gun'"):
        decremental(ORIGINAL, STEPS, targets=["cat", "gun"], near=["gun"])
    with pytest.raises(InputError, match="one target a step, got 1 for 2"):
        decremental(ORIGINAL, STEPS, targets=["cat"], near=["dog"])
    with pytest.raises(InputError, match="expected kept concepts, got none"):
        decremental(ORIGINAL, STEPS, targets=["cat", "gun"])
    with pytest.raises(InputError, match="accuracy on 'bird' after step 0"):
        decremental(ORIGINAL, STEPS, targets=["cat", "gun"], near=["bird"])


def test_joint_rate_cannot_be_had_by_drawing_nothing_or_everything() -> None:
    absent, present = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert joint_rate(absent, present) == Rate(hits=1, n=4)
    always, never = np.ones(4, bool), np.zeros(4, bool)
    assert joint_rate(always, never).value == joint_rate(never, always).value == 0.0
    with pytest.raises(InputError, match="same images, got 4 and 3"):
        joint_rate(absent, present[:3])


def test_relative_retention_has_no_value_without_an_original() -> None:
    assert relative_retention(0.5, 0.25) == 0.5
    assert relative_retention(0.5, 1) == 2.0
    assert relative_retention(0.5, 0) == 0.0
    with pytest.raises(InputError, match="shows the concept at all, got 0"):
        relative_retention(0, 0.5)
