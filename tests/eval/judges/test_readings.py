"""Single pictures: what is read of them, and where two differ."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from erasure import Concept
from erasure.errors import InputError
from erasure.eval.images.difference import difference, difference_map
from erasure.eval.judges.readings import Seen, named_in, read
from erasure.judge import HubClip, ZeroShotJudge, among
from erasure.profile import profile_of
from tests import tiny
from tests.eval import world

CAT = Concept(target="cat", aliases=("kitty", "feline"))
PICTURES = [Image.new("RGB", (64, 64), colour) for colour in ("white", "navy", "gold")]


WORLD = profile_of("tinyworld")
TEXTS = {"named": "an image of {}", "plain": "an image"}
OTHER = profile_of("a/model")


def test_a_prompt_is_asked_for_what_it_names_and_what_was_removed_comes_first() -> None:
    assert named_in("a dog and a kitty on the beach", [CAT], profile=WORLD) == ("cat", "dog")
    assert named_in("a catfish", [CAT], profile=WORLD) == ("catfish",)
    assert named_in("a neon picture of a car", [], profile=WORLD) == ("car", "neon")
    assert named_in("nothing in particular", [CAT], profile=WORLD) == ()
    assert named_in("a dog and a cat", [CAT], profile=OTHER, kept=["dog", "bird"]) == ("cat", "dog")


def test_readings_are_the_oracles_and_in_order() -> None:
    prompts = ["a cat", "a dog", "a thing"]
    found = read(world.oracle(), prompts, PICTURES, PICTURES[::-1], [CAT], profile=WORLD)
    assert [[one.name for one in seen] for seen in found] == [["cat"], ["dog"], []]
    before, after = (world.oracle().read(images).probability("cat") for images in (PICTURES[:1], PICTURES[2:]))
    assert found[0][0].before == pytest.approx(before[0], abs=1e-6)
    assert found[0][0].after == pytest.approx(after[0], abs=1e-6)
    assert [seen[0].removed for seen in found[:2]] == [True, False]
    assert read(None, prompts, PICTURES, PICTURES, [CAT], profile=WORLD) == [(), (), ()]


@pytest.mark.parametrize(
    ("before", "after", "removed", "good"),
    [
        (0.9, 0.1, True, True),
        (0.9, 0.9, True, False),
        (0.1, 0.9, True, False),
        (0.1, 0.1, True, None),
        (0.9, 0.9, False, True),
        (0.9, 0.1, False, False),
        (0.1, 0.9, False, None),
    ],
)
def test_good_is_gone_if_removed_and_there_if_not(before: float, after: float, removed: bool, good: bool) -> None:
    assert Seen(name="cat", before=before, after=after, removed=removed).good is good


def test_clip_reads_shares_between_the_concept_and_nothing_in_particular() -> None:
    judge = ZeroShotJudge("CLIP", HubClip(tiny.clip), among((), **TEXTS), logit_scale=10.0)
    shares = judge.probabilities(PICTURES, "cat")
    assert shares.shape == (3,)
    assert ((shares > 0) & (shares < 1)).all()


def test_without_weights_another_model_has_no_judge(monkeypatch) -> None:
    monkeypatch.setattr("erasure.profile.cached_clips", list)
    assert OTHER.judge("cpu") is None
    assert OTHER.judges("cpu") == []


def test_the_difference_is_nothing_for_equal_and_all_for_opposite_pictures() -> None:
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    assert not difference(black, black).any()
    assert (difference(black, white) == 1).all()
    with pytest.raises(InputError, match="one size"):
        difference(black, white.resize((4, 4)))


def test_the_map_is_coloured_where_the_pictures_differ_and_grey_elsewhere() -> None:
    before = Image.new("RGB", (8, 8), "grey")
    after = before.copy()
    ImageDraw.Draw(after).rectangle((0, 0, 3, 7), fill="black")
    drawn = np.asarray(difference_map(before, after)).astype(int)
    coloured = np.ptp(drawn, axis=2) > 0
    assert coloured[:, :4].all()
    assert not coloured[:, 4:].any()
