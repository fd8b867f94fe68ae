"""The quick measure: what is asked, and what the answers come to."""

import torch
from PIL import Image

from erasure import Concept
from erasure.eval.protocols.plans import PlannedImage, plan_known, plan_named
from erasure.eval.protocols.quick import QuickMeasure, measure
from erasure.eval.stats.scores import Rate
from erasure.profile import profile_of
from erasure.runs.schema import MeasureSettings
from erasure.tinyworld import vocabulary

WORLD = profile_of("tinyworld")
SETTINGS = MeasureSettings(per_concept=6, near=11, far=40)


class Written:
    """A judge whose decisions are written down: an image is the position of its set of names."""

    name = "a list"

    def __init__(self, *shown: list[set[str]]) -> None:
        self.shown = [names for row in shown for names in row]
        places = iter(range(len(self.shown)))
        self.images = [[Image.new("I", (1, 1), next(places)) for _ in row] for row in shown]

    def knows(self, concept: str) -> bool:
        return True

    def probabilities(self, images, concept: str) -> torch.Tensor:
        return torch.tensor(self.shows(images, concept), dtype=torch.float)

    def shows(self, images, concept: str) -> list[bool]:
        return [concept in self.shown[image.getpixel((0, 0))] for image in images]

    def features(self, images) -> torch.Tensor:
        return torch.tensor([[float(len(self.shown[image.getpixel((0, 0))])), 1.0] for image in images])


def compared(before: list[set[str]], after: list[set[str]]) -> QuickMeasure:
    judge = Written(before, after)
    return measure(PROBES, judge, *judge.images)


def probe(name: str, role) -> PlannedImage:
    return PlannedImage(name=name, role=role, prompt=f"a {name}", seed=0)


PROBES = [
    probe("cat", "removed"),
    probe("cat", "removed"),
    probe("gun", "removed"),
    *[probe("dog", "near")] * 3,
    probe("car", "far"),
]
BEFORE: list[set[str]] = [{"cat"}, {"cat"}, {"gun"}, {"dog"}, {"dog"}, set(), {"car"}]


def test_a_perfect_removal_scores_one_everywhere() -> None:
    after: list[set[str]] = [set(), set(), set(), {"dog"}, {"dog"}, set(), {"car"}]
    found = compared(BEFORE, after)
    assert found.efficacy.value == 1.0
    assert found.removed["cat"].before.value == 0.0
    assert found.near is not None
    assert found.far is not None
    assert found.near.retention == Rate(hits=2, n=2)
    assert found.near.before == Rate(hits=2, n=3)
    assert found.far.distance.value == 0.0


def test_an_edit_that_does_nothing_keeps_all_and_removes_nothing() -> None:
    found = compared(BEFORE, BEFORE)
    assert found.efficacy.value == 0.0
    assert found.near is not None
    assert found.near.retention == Rate(hits=2, n=2)
    assert found.near.distance.value == 0.0


def test_efficacy_is_that_of_the_concept_of_which_most_is_left() -> None:
    after: list[set[str]] = [set(), {"cat"}, set(), {"dog"}, set(), {"dog"}, set()]
    found = compared(BEFORE, after)
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
    nothing: list[set[str]] = [set() for _ in PROBES]
    found = compared(nothing, nothing)
    assert found.near is not None
    assert found.near.retention is None
    assert found.as_json()["retention"]["near"] is None


def test_the_plan_asks_for_every_group_as_often_as_it_should() -> None:
    plan = plan_known(WORLD, ["cat", "neon"], SETTINGS)
    count = {role: sum(probe.role == role for probe in plan.probes) for role in ("removed", "near", "far")}
    assert count == {"removed": 12, "near": 11, "far": 40}
    near = {probe.name for probe in plan.probes if probe.role == "near"}
    assert near <= set(vocabulary.siblings("cat")) | set(vocabulary.siblings("neon"))
    assert not near & {probe.name for probe in plan.probes if probe.role == "far"}
    assert plan.left_out == {"Mittens": "a cat, which was removed"}
    assert len(set(plan.pairs)) == len(plan.pairs)


def test_kept_prompts_name_nothing_that_was_removed() -> None:
    plan = plan_known(WORLD, ["cat", "neon", "dog"], MeasureSettings(per_concept=1, near=100, far=200))
    words = {"cat", "kitty", "feline", "neon", "dog", "puppy", "hound"}
    assert not [probe for probe in plan.probes if probe.role != "removed" and words & set(probe.prompt.split())]


def test_a_picture_is_asked_for_again_by_later_plans() -> None:
    first = plan_known(WORLD, ["cat"], SETTINGS)
    second = plan_known(WORLD, ["cat", "gun"], SETTINGS)
    shared = [pair for pair in second.pairs if pair in set(first.pairs)]
    assert len(shared) > len(first.pairs) // 2
    assert plan_known(WORLD, ["cat"], SETTINGS) == first
    assert plan_known(WORLD, ["cat"], MeasureSettings(per_concept=6, near=11, far=40, seed=1)).pairs != first.pairs


def test_an_individual_is_near_to_its_class() -> None:
    plan = plan_known(WORLD, ["Mittens"], SETTINGS)
    assert {probe.name for probe in plan.probes if probe.role == "near"} == {"cat", "Biscuit"}


def test_other_models_are_asked_for_what_their_removals_name() -> None:
    removed = [
        Concept(target="Van Gogh", kind="style", preserve=("Monet", "Picasso")),
        Concept(target="Picasso", kind="style", preserve=("Monet",)),
    ]
    plan = plan_named(removed, SETTINGS)
    asked = {(probe.name, probe.role) for probe in plan.probes}
    assert asked == {("Van Gogh", "removed"), ("Picasso", "removed"), ("Monet", "near")}
    assert all(probe.name in probe.prompt for probe in plan.probes)
