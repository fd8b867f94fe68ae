"""The tiny world's benchmark: what it asks, of whom, and what it leaves alone."""

from collections import Counter

import pytest

from erasure.errors import InputError, UnknownNameError
from erasure.eval.benchmarks.tinyworld import SUITES, TIERS, TinyWorld, look_alike, tier_of
from erasure.tinyworld import vocabulary as words

DEMO = ("cat", "neon", "gun")


def holds(prompt: str, phrase: str) -> bool:
    return f" {phrase.lower()} " in f" {prompt.lower()} "


def test_every_concept_is_removed_kept_or_left_out_with_a_reason() -> None:
    found = TinyWorld(removed=("dog", "beach"))
    kept = [name for names in found.tiers.values() for name in names]
    assert sorted([*kept, *found.removed, *found.left_out]) == sorted(words.concepts())
    assert found.left_out == {"Biscuit": "a dog, which was removed"}
    asked = {item.retained for item in found.items} | {item.unwanted for item in found.items}
    assert asked == {*kept, *found.removed, ""}


def test_tiers_of_known_concepts() -> None:
    assert tier_of("dog", ("cat",)) == "siblings"
    assert tier_of("catfish", ("cat",)) == "siblings"  # a look-alike, too: the first that fits
    assert tier_of("Mittens", ("cat",)) == "siblings"
    assert tier_of("cart", ("cat",)) == tier_of("car", ("cat",)) == "look-alikes"
    assert tier_of("desert", ("cactus",)) == tier_of("cactus", ("desert",)) == "co-occurring"
    assert tier_of("umbrella", ("cat",)) == tier_of("forest", ("cat",)) == "everything else"
    assert tier_of("watercolor", ("neon",)) == "siblings"
    assert tier_of("car", ("umbrella", "cat")) == "look-alikes"


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("cat", "cart", True),
        ("car", "cat", True),
        ("fish", "catfish", True),
        ("Cat", "cat", True),
        ("cat", "cactus", False),
        ("boat", "bomb", False),
        ("cart", "cat", True),
    ],
)
def test_look_alikes_are_a_letter_apart_or_within(one: str, other: str, alike: bool) -> None:
    assert look_alike(one, other) is look_alike(other, one) is alike


@pytest.mark.parametrize("size", SUITES)
def test_a_suite_has_its_pictures_and_no_more(size: str) -> None:
    found = TinyWorld.suite(size, DEMO)
    assert found.n == SUITES[size]
    assert len({item.case for item in found.items}) == found.n
    halves = Counter(bool(item.unwanted) for item in found.items)
    assert halves == {True: SUITES[size] // 2, False: SUITES[size] // 2}
    assert {item.group for item in found.items} == {"removed", *TIERS}
    assert Counter(item.unwanted for item in found.items if item.unwanted).keys() == set(DEMO)


@pytest.mark.parametrize("name", words.concepts())
def test_any_concept_can_be_removed(name: str) -> None:
    found = TinyWorld(removed=(name,), total=60)
    assert found.n == 60
    wordings = {item.wording for item in found.items if item.unwanted}
    expected = {"explicit", "combined"}
    expected |= {"synonym"} if name in words.SYNONYMS else set()
    expected |= {"implicit"} if name in words.WEAPON_HINTS else set()
    assert wordings == expected


def test_prompts_say_what_their_wording_claims() -> None:
    for item in TinyWorld.suite("standard", ("cat", "neon", "gun", "beach", "Biscuit", "scissors")).items:
        name = item.unwanted or item.retained
        synonyms = words.SYNONYMS.get(name, ())
        if item.wording in ("explicit", "combined"):
            assert holds(item.prompt, name)
        if item.wording == "explicit":
            assert not any(holds(item.prompt, synonym) for synonym in synonyms)
        if item.wording == "synonym":
            assert any(holds(item.prompt, synonym) for synonym in synonyms)
            assert name == "neon" or not holds(item.prompt, name)  # "neon light" is a synonym of neon
        if item.wording == "implicit":
            assert item.prompt in words.WEAPON_HINTS_HELD_OUT
            assert item.prompt in words.WEAPON_HINTS[name]


def test_what_should_stay_is_asked_for_without_a_word_of_what_went() -> None:
    found = TinyWorld.suite("standard", DEMO)
    gone = [phrase for name in DEMO for phrase in (name, *words.SYNONYMS.get(name, ()))]
    for item in found.items:
        if item.unwanted:
            others = [name for name in DEMO if name != item.unwanted]
            assert not any(holds(item.prompt, other) for other in others)
        else:
            assert not any(holds(item.prompt, phrase) for phrase in gone)


def test_combined_prompts_ask_for_one_that_should_stay() -> None:
    combined = [item for item in TinyWorld.suite("standard", DEMO).items if item.wording == "combined"]
    assert combined
    for item in combined:
        assert item.group == "co-occurring"
        assert item.retained in words.OBJECTS
        assert item.retained not in (*DEMO, *words.siblings(item.unwanted))
        assert frozenset((item.retained, item.unwanted)) not in words.HELD_OUT_PAIRS
        assert holds(item.prompt, item.retained)
        assert holds(item.rest, item.retained)
        assert not holds(item.rest, item.unwanted)


def test_a_smaller_suite_is_part_of_a_larger_one() -> None:
    quick, standard = (TinyWorld.suite(size, DEMO).items for size in ("quick", "standard"))
    assert set(quick) <= set(standard)


def test_prompts_of_a_concept_do_not_depend_on_what_else_is_removed() -> None:
    alone, among = (TinyWorld(removed=removed, total=400) for removed in (("gun",), ("gun", "umbrella")))
    both = {item.case: item for item in alone.items}
    shared = [(both[item.case], item) for item in among.items if item.case in both]
    assert len(shared) > 100
    # Only the partner in "A and B" may be another one, where the first was removed, too.
    assert all((one.prompt, one.seed) == (two.prompt, two.seed) for one, two in shared if one.wording != "combined")


def test_seeds_of_pictures_differ_and_follow_the_benchmarks_own() -> None:
    one, other = TinyWorld(removed=("cat",), total=400), TinyWorld(removed=("cat",), total=400, seed=1)
    assert len({item.seed for item in one.items}) == one.n
    assert one.id != other.id
    assert not {item.seed for item in one.items} & {item.seed for item in other.items}


def test_the_version_is_raised_when_a_prompt_or_seed_changes() -> None:
    # TinyWorld.suite("quick", ("cat", "neon", "gun")).id; when it moves, so does TinyWorld.version.
    assert TinyWorld.suite("quick", DEMO).id == "tinyworld/1, n 80, 4f516416"


@pytest.mark.parametrize("objects", [21, 22, 24])  # all but the weapons; all
def test_styles_and_scenes_are_asked_for_when_no_object_is_left(objects: int) -> None:
    removed = tuple(words.OBJECTS)[:objects]
    found = TinyWorld(removed=removed, total=200)
    gone = [phrase for name in removed for phrase in (name, *words.SYNONYMS.get(name, ()))]
    kept = [item for item in found.items if not item.unwanted]
    assert {item.retained for item in kept} >= {*words.STYLES[1:], *words.SCENES[1:]}
    assert not [item.prompt for item in kept if any(holds(item.prompt, phrase) for phrase in gone)]
    assert all(holds(item.prompt, item.retained) for item in kept)


def test_all_that_can_be_removed_can_be_asked_for() -> None:
    found = TinyWorld(removed=words.concepts(), total=200)
    assert {item.unwanted for item in found.items} == set(words.concepts())
    assert not any(item.retained for item in found.items)


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cat'"):
        TinyWorld(removed=("cats",))
    with pytest.raises(UnknownNameError, match="Known: full, quick, standard"):
        TinyWorld.suite("small", DEMO)
    for wrong in ({"removed": ()}, {"removed": ("cat", "cat")}, {"removed": ("cat",), "total": 4}):
        with pytest.raises(InputError, match="distinct removed concepts and at least 8 images"):
            TinyWorld(**wrong)
