"""Suggestions: what to keep, what to draw."""

import pytest

from erasure.prompts import COMMON
from erasure.suggestions import suggested_preserve, suggested_prompts
from erasure.tinyworld import vocabulary
from tests import tiny
from tests.eval import world


def test_on_the_tiny_world_the_family_comes_first_and_a_named_cat_is_not_kept() -> None:
    found = suggested_preserve(world.pipeline(), "tinyworld", ["kitty"], 8)
    assert found[:5] == ["dog", "rabbit", "fish", "catfish", "bird"]
    assert len(found) == 8
    assert not {"cat", "Mittens"} & set(found)
    assert suggested_preserve(world.pipeline(), "tinyworld", ["unicorn"], 8) == []


def test_elsewhere_everyday_names_of_the_kind_are_kept() -> None:
    found = suggested_preserve(tiny.sd1(), "a/model", ["Claude Monet"], 5, kind="style")
    assert len(found) == 5
    assert set(found) < set(COMMON["style"]) - {"Claude Monet"}
    assert suggested_preserve(tiny.sd1(), "a/model", ["Somebody"], 5, kind="identity") == []


@pytest.mark.parametrize("name", vocabulary.concepts())
def test_what_is_drawn_names_the_target_first_and_then_something_else(name: str) -> None:
    target, beside = suggested_prompts("tinyworld", [name])
    words = (name, *vocabulary.SYNONYMS.get(name, ()))
    assert any(word in target for word in words)
    assert target != beside


def test_elsewhere_what_is_drawn_is_a_photo_of_the_target() -> None:
    assert suggested_prompts("a/model", ["Van Gogh"], kind="style") != suggested_prompts("a/model", ["umbrella"])
    assert suggested_prompts("a/model", ["umbrella"]) == ["a photo of an umbrella"]
    prompts = suggested_prompts("a/model", ["umbrella"], ["hat", "shoe"], removed=["Hat"])
    assert prompts == ["a photo of an umbrella", "a photo of a shoe"]


def test_each_target_has_a_prompt_and_a_neighbour_that_is_still_there() -> None:
    prompts = suggested_prompts("tinyworld", ["castle", "kitty"], removed=["dog", "house"])
    assert prompts == [f"a {name} on the beach" for name in ("castle", "cat", "church", "rabbit")]
