"""Health after each entry: abilities beside the original's, damage, and the course over the entries."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from erasure.concept import Concept
from erasure.eval.protocols.health import (
    ALARM,
    EMPTY,
    EMPTY_PROMPT,
    PAIRS,
    TOGETHER,
    WHOLE,
    Course,
    HealthCheck,
    checks_of,
    damages,
    health,
)
from erasure.eval.protocols.plans import plan_known
from erasure.eval.stats.aggregates import backward_transfer, forgotten_per_removed
from erasure.eval.stats.effects import hedges_g
from erasure.eval.stats.scores import Rate
from erasure.profile import profile_of
from erasure.prompts import speaks_of
from erasure.runs.schema import MeasureSettings

WORLD = profile_of("tinyworld")
CAT = Concept(target="cat", aliases=WORLD.aliases("cat"))


class Labelled:
    """A judge that reads what an image shows from its label."""

    name = "labels"

    def knows(self, concept: str) -> bool:
        return True

    def shows(self, images: Sequence[Image.Image], concept: str) -> list[bool]:
        return [concept in image.info["shows"] for image in images]

    def probabilities(self, images: Sequence[Image.Image], concept: str) -> torch.Tensor:
        return torch.tensor(self.shows(images, concept)).float()

    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.zeros(len(images), 1)


def showing(*names: str) -> Image.Image:
    image = Image.new("RGB", (4, 4))
    image.info["shows"] = names
    return image


def checks(removed: Sequence[Concept] = (CAT,)) -> list[HealthCheck]:
    planned = plan_known(WORLD, [concept.target for concept in removed], MeasureSettings())
    return checks_of(WORLD, removed, planned.probes)


def everything(asked: Sequence[HealthCheck]) -> list[Image.Image]:
    return [showing(*(check.parts or ("dog",))) for check in asked]


def test_the_images_ask_for_kept_concepts_alone_and_cover_every_ability() -> None:
    asked = checks()
    assert not [check.prompt for check in asked if speaks_of(check.prompt, [CAT])]
    assert not [part for check in asked for part in check.parts if part in ("cat", "Mittens")]
    found = health(asked, WORLD, Labelled(), everything(asked), everything(asked))["abilities"]
    assert set(found) == {WHOLE, TOGETHER, EMPTY_PROMPT, "pair", "object", "style", "scene", "identity"}
    assert found["pair"]["before"]["n"] == PAIRS
    assert found[EMPTY_PROMPT]["before"]["n"] == EMPTY
    assert all(each["before"]["value"] == each["after"]["value"] == 1 for each in found.values())
    assert all(each["effect"]["value"] == 0 and not each["damaged"] for each in found.values())


def test_a_pair_stays_the_same_while_its_two_are_kept() -> None:
    one, two = (
        {(check.prompt, check.seed) for check in checks(removed) if " and " in check.prompt and len(check.parts) == 2}
        for removed in ([CAT], [CAT, Concept(target="dog")])
    )
    assert all("dog" in prompt for prompt, _ in one - two)


def test_an_ability_that_is_lost_is_damaged_and_named() -> None:
    asked = checks()
    after = [showing(*(part for part in check.parts if WORLD.ability(part) != "style")) for check in asked]
    record = health(asked, WORLD, Labelled(), everything(asked), after)
    found = record["abilities"]
    assert found["style"]["damaged"]
    assert found["style"]["effect"]["value"] < ALARM
    assert not found["object"]["damaged"]
    assert not found["pair"]["damaged"]
    assert found[TOGETHER]["after"]["value"] < 1, "prompts with a style lost a part of two"
    assert any(line.startswith("style: 0.00, was 1.00") for line in damages(record))


def test_hedges_g_of_shares_is_0_without_a_change_and_grows_with_it() -> None:
    same = hedges_g(Rate(hits=8, n=8), Rate(hits=8, n=8))
    assert (same.value, same.low) == (0, pytest.approx(-same.high))
    half, none = (hedges_g(Rate(hits=8, n=8), Rate(hits=hits, n=8)) for hits in (4, 0))
    assert none.value < half.value < 0
    assert none.high < 0
    # p = .75 and .25 of 8, by hand: s^2 = (6.5 / 9)(2.5 / 9) for both, J = 1 - 3 / (4 * 16 - 9)
    by_hand = (1 - 3 / 55) * -0.5 / (6.5 * 2.5) ** 0.5 * 9
    assert hedges_g(Rate(hits=6, n=8), Rate(hits=2, n=8)).value == pytest.approx(by_hand)


def measured(removed: dict[str, float], kept: float = 1.0, effect: float | None = None) -> dict[str, Any]:
    return {
        "removed": {
            name: {"efficacy": {"value": value, "n": 20}, "before": {"value": 0.1, "n": 20}}
            for name, value in removed.items()
        },
        "kept": {"near": {"accuracy": {"dog": {"before": 1.0, "after": kept}, "bird": {"before": 0.5, "after": 0.9}}}},
        "health": effect and {"abilities": {WHOLE: {"effect": {"value": effect}}}},
    }


def test_a_target_that_comes_back_has_backward_transfer_below_0() -> None:
    course = Course.of([measured({"cat": 1.0}, effect=-0.1), measured({"cat": 0.6, "neon": 1.0}, 0.8, effect=-0.2)])
    assert course.backward_transfer == pytest.approx(-0.4)
    assert course.returned == ("cat", pytest.approx(-0.4))
    assert course.slope == pytest.approx(-0.1)
    # lost .2 of dog, a gain of bird does not count; removed .6 - .1 of cat and 1 - .1 of neon
    assert course.forgotten_per_removed == pytest.approx(0.2 / 1.4)
    assert "backward transfer -0.400" in course.line
    assert "least: cat -0.40" in course.line


def test_without_measures_there_is_no_course() -> None:
    assert Course.of([None, None]).line == ""
    single = Course.of([measured({"cat": 1.0})])
    assert single.backward_transfer is None
    assert single.forgotten_per_removed == 0
    assert forgotten_per_removed([1.0], [0.5], [0.5], [0.5]) is None
    assert backward_transfer([], []) is None
