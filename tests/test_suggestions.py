"""Suggestions: what to keep, what to draw."""

import pytest

from erasure.backbones import backbone_of
from erasure.suggestions import COMMON, nearest, what_to_draw, what_to_keep
from erasure.tinyworld import vocabulary
from tests import tiny
from tests.eval import world


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_nearest_are_sorted_and_hold_no_target(family: str) -> None:
    backbone = backbone_of(tiny.FAMILIES[family]())
    found = nearest(backbone, ["Cat"], ["cat", "dog", "a cat", "tree", "dog"], 3)
    assert {name for name, _ in found} == {"dog", "a cat", "tree"}
    likeness = [value for _, value in found]
    assert likeness == sorted(likeness, reverse=True)
    assert all(-1 <= value <= 1 for value in likeness)
    assert nearest(backbone, ["cat"], ["dog", "tree"], 1) == nearest(backbone, ["cat"], ["dog", "tree"], 2)[:1]
    assert nearest(backbone, [], ["dog"], 3) == nearest(backbone, ["dog"], ["dog"], 3) == []


def test_a_name_that_reads_the_same_is_the_nearest() -> None:
    found = nearest(backbone_of(tiny.sd1(vocabulary="clip")), ["cat"], ["tree", "CAT ,", "rocket"], 3)
    assert found[0][0] == "CAT ,"


def test_on_the_tiny_world_the_family_comes_first_and_a_named_cat_is_not_kept() -> None:
    found = what_to_keep(world.pipeline(), "tinyworld", ["kitty"], 8)
    assert found[:5] == ["dog", "rabbit", "fish", "catfish", "bird"]
    assert len(found) == 8
    assert not {"cat", "Mittens"} & set(found)
    assert what_to_keep(world.pipeline(), "tinyworld", ["unicorn"], 8) == []


def test_elsewhere_everyday_names_of_the_kind_are_kept() -> None:
    found = what_to_keep(tiny.sd1(), "a/model", ["Claude Monet"], 5, kind="style")
    assert len(found) == 5
    assert set(found) < set(COMMON["style"]) - {"Claude Monet"}
    assert what_to_keep(tiny.sd1(), "a/model", ["Somebody"], 5, kind="identity") == []


@pytest.mark.parametrize("name", vocabulary.concepts())
def test_what_is_drawn_names_the_target_first_and_then_something_else(name: str) -> None:
    target, beside = what_to_draw("tinyworld", name)
    words = (name, *vocabulary.SYNONYMS.get(name, ()))
    assert any(word in target for word in words)
    assert target != beside


def test_elsewhere_what_is_drawn_is_a_photo_of_the_target() -> None:
    assert what_to_draw("a/model", "Van Gogh", kind="style") != what_to_draw("a/model", "umbrella")
    assert what_to_draw("a/model", "umbrella") == ["a photo of an umbrella"]
