"""The quick measure: what is asked, and what the answers come to."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from erasure import Concept
from erasure.eval.judges.clip import ClipJudge
from erasure.eval.judges.interface import Judge, Reading
from erasure.eval.protocols.plans import Probe, plan_named, plan_tinyworld
from erasure.eval.protocols.quick import measure
from erasure.eval.stats.scores import Rate
from erasure.runs.schema import MeasureSettings
from erasure.tinyworld import vocabulary
from tests import tiny
from tests.eval import world

SETTINGS = MeasureSettings(per_concept=6, near=11, far=40)


@dataclass(frozen=True)
class Written:
    """A reading that is written down instead of read."""

    shown: list[set[str]]

    @property
    def features(self) -> np.ndarray:
        return np.array([[float(len(names)), 1.0] for names in self.shown])

    def sees(self, name: str) -> np.ndarray:
        return np.array([name in names for names in self.shown])


def probe(name: str, role) -> Probe:
    return Probe(name=name, role=role, prompt=f"a {name}", seed=0)


PROBES = [
    probe("cat", "removed"),
    probe("cat", "removed"),
    probe("gun", "removed"),
    *[probe("dog", "near")] * 3,
    probe("car", "far"),
]
BEFORE = Written([{"cat"}, {"cat"}, {"gun"}, {"dog"}, {"dog"}, set(), {"car"}])


def test_a_perfect_removal_scores_one_everywhere() -> None:
    after = Written([set(), set(), set(), {"dog"}, {"dog"}, set(), {"car"}])
    found = measure(PROBES, BEFORE, after, "a list")
    assert found.efficacy.value == 1.0
    assert found.removed["cat"].before.value == 0.0
    assert found.near is not None
    assert found.far is not None
    assert found.near.retention == Rate(hits=2, n=2)
    assert found.near.before == Rate(hits=2, n=3)
    assert found.far.distance.value == 0.0


def test_an_edit_that_does_nothing_keeps_all_and_removes_nothing() -> None:
    found = measure(PROBES, BEFORE, BEFORE, "a list")
    assert found.efficacy.value == 0.0
    assert found.near is not None
    assert found.near.retention == Rate(hits=2, n=2)
    assert found.near.distance.value == 0.0


def test_efficacy_is_that_of_the_concept_of_which_most_is_left() -> None:
    after = Written([set(), {"cat"}, set(), {"dog"}, set(), {"dog"}, set()])
    found = measure(PROBES, BEFORE, after, "a list")
    assert (found.worst, found.efficacy) == ("cat", Rate(hits=1, n=2))
    assert found.removed["gun"].efficacy == Rate(hits=1, n=1)
    assert found.near is not None
    assert found.near.retention == Rate(hits=1, n=2)  # the one it mends does not make up for the one it breaks
    assert found.near.after == Rate(hits=2, n=3)
    data = found.as_json()
    assert data["efficacy"] == 0.5
    assert data["retention"] == {"near": 0.5, "far": 0.0}
    assert data["n"] == {"efficacy": 2, "near": 2, "far": 1}


def test_a_group_that_the_original_never_shows_has_no_retention() -> None:
    nothing = Written([set()] * len(PROBES))
    found = measure(PROBES, nothing, nothing, "a list")
    assert found.near is not None
    assert found.near.retention is None
    assert found.as_json()["retention"]["near"] is None


def test_the_plan_asks_for_every_group_as_often_as_it_should() -> None:
    plan = plan_tinyworld(["cat", "neon"], SETTINGS)
    count = {role: sum(probe.role == role for probe in plan.probes) for role in ("removed", "near", "far")}
    assert count == {"removed": 12, "near": 11, "far": 40}
    near = {probe.name for probe in plan.probes if probe.role == "near"}
    assert near <= set(vocabulary.siblings("cat")) | set(vocabulary.siblings("neon"))
    assert not near & {probe.name for probe in plan.probes if probe.role == "far"}
    assert plan.left_out == {"Mittens": "a cat, which was removed"}
    assert len(set(plan.pairs)) == len(plan.pairs)


def test_kept_prompts_name_nothing_that_was_removed() -> None:
    plan = plan_tinyworld(["cat", "neon", "dog"], MeasureSettings(per_concept=1, near=100, far=200))
    words = {"cat", "kitty", "feline", "neon", "dog", "puppy", "hound"}
    assert not [probe for probe in plan.probes if probe.role != "removed" and words & set(probe.prompt.split())]


def test_a_picture_is_asked_for_again_by_later_plans() -> None:
    first = plan_tinyworld(["cat"], SETTINGS)
    second = plan_tinyworld(["cat", "gun"], SETTINGS)
    shared = [pair for pair in second.pairs if pair in set(first.pairs)]
    assert len(shared) > len(first.pairs) // 2
    assert plan_tinyworld(["cat"], SETTINGS) == first
    assert plan_tinyworld(["cat"], MeasureSettings(per_concept=6, near=11, far=40, seed=1)).pairs != first.pairs


def test_an_individual_is_near_to_its_class() -> None:
    plan = plan_tinyworld(["Mittens"], SETTINGS)
    assert {probe.name for probe in plan.probes if probe.role == "near"} == {"cat", "Biscuit"}


def test_the_oracle_is_a_judge() -> None:
    judge = world.oracle()
    assert isinstance(judge, Judge)
    reading = judge.read([Image.new("RGB", (64, 64))] * 2)
    assert isinstance(reading, Reading)
    assert reading.features.shape[0] == 2
    for name in vocabulary.concepts():
        assert reading.sees(name).shape == (2,)


@pytest.fixture(scope="module")
def clip_judge() -> ClipJudge:
    """CLIP's own classes with random weights."""
    model, processor = tiny.clip()
    return ClipJudge(model=model, processor=processor, names=("Van Gogh", "Monet"))


def test_clip_chooses_between_the_concepts_and_nothing_in_particular(clip_judge) -> None:
    assert isinstance(clip_judge, Judge)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8)) for _ in range(20)]
    reading = clip_judge.read(pictures)
    assert isinstance(reading, Reading)
    assert reading.features.shape == (20, 8)
    votes = reading.sees("Van Gogh").astype(int) + reading.sees("Monet")
    assert set(votes.tolist()) <= {0, 1}


def test_other_models_are_asked_for_what_their_removals_name() -> None:
    removed = [
        Concept(target="Van Gogh", kind="style", preserve=("Monet", "Picasso")),
        Concept(target="Picasso", kind="style", preserve=("Monet",)),
    ]
    plan = plan_named(removed, SETTINGS)
    asked = {(probe.name, probe.role) for probe in plan.probes}
    assert asked == {("Van Gogh", "removed"), ("Picasso", "removed"), ("Monet", "near")}
    assert all(probe.name in probe.prompt for probe in plan.probes)
