"""The world tells the truth about its pictures, and keeps what it promises to hold out."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erasure.tinyworld import vocabulary as words
from erasure.tinyworld.data import drawings, pictures_of
from erasure.tinyworld.drawing import DRAW
from erasure.tinyworld.world import Mix, caption, compose, draw, sample_picture

PICTURES = pictures_of(6000, 0, Mix())


def test_everything_named_can_be_drawn() -> None:
    assert set(DRAW) == {*words.OBJECTS, *words.INDIVIDUALS}


def test_drawing_is_the_same_on_every_call() -> None:
    picture = sample_picture(random.Random(3))
    np.testing.assert_array_equal(np.asarray(draw(picture)), np.asarray(draw(picture)))


def test_drawings_do_not_depend_on_the_number_of_processes() -> None:
    one, two = drawings(600, 5, workers=1), drawings(600, 5, workers=2)
    np.testing.assert_array_equal(one.pixels, two.pixels)


def test_a_thing_changes_the_picture_inside_its_box_only() -> None:
    for name in DRAW:
        picture = compose([name], random.Random(1), scene="beach")
        bare = type(picture)(things=(), style="photo", scene="beach", seed=picture.seed)
        changed = (np.asarray(draw(picture)) != np.asarray(draw(bare))).any(-1)
        x0, y0, x1, y1 = picture.things[0].box
        inside = changed[max(0, round(y0) - 9) : round(y1) + 9, max(0, round(x0) - 3) : round(x1) + 3]
        assert changed.sum() > 100
        assert inside.sum() == changed.sum()


def test_held_out_pairs_never_share_a_picture() -> None:
    for picture in PICTURES:
        classes = {words.INDIVIDUALS.get(t.name, t.name) for t in picture.things}
        assert frozenset(classes) not in words.HELD_OUT_PAIRS
        assert len(classes) == len(picture.things)


def test_counts_are_as_stated() -> None:
    counts = Counter(len(p.things) for p in PICTURES)
    for things, share in ((0, 0.1), (1, 0.6), (2, 0.3)):
        assert counts[things] / len(PICTURES) == pytest.approx(share, abs=0.03)


def test_rusty_is_never_shown_to_the_generator() -> None:
    assert not any("Rusty" in p.names for p in PICTURES)
    assert any("Rusty" in p.names for p in pictures_of(2000, 0, Mix(individuals=tuple(words.INDIVIDUALS))))


@pytest.mark.parametrize("name", words.CORRELATED_SCENES)
def test_correlated_objects_favour_their_scene(name: str) -> None:
    scenes = Counter(p.scene for p in PICTURES if p.names == (name,))
    usual = words.CORRELATED_SCENES[name]
    others = [scenes[s] for s in words.SCENES if s not in ("plain", usual)]
    assert scenes[usual] > 2 * max(others)


@pytest.mark.parametrize("gone", ["cat", "neon", "beach", "Biscuit"])
def test_without_leaves_every_picture_of_a_concept_out(gone: str) -> None:
    shown = [p for p in pictures_of(1500, 0, Mix(without=(gone,))) if p.shows(gone)]
    assert not shown


def test_without_a_class_its_individuals_go_too() -> None:
    assert "Mittens" not in Mix(without=("cat",)).names


def test_hints_name_no_weapon() -> None:
    naming = {w for name in words.WEAPON_HINTS for w in (name, *words.SYNONYMS[name], "weapon")}
    hints = [h for group in words.WEAPON_HINTS.values() for h in group]
    assert len(hints) >= 12
    assert not any(word in hint.split() for hint in hints for word in naming)
    assert len(words.WEAPON_HINTS_HELD_OUT) == 4
    assert set(hints) >= words.WEAPON_HINTS_HELD_OUT


def test_captions_of_a_lone_weapon_hint_in_about_a_third() -> None:
    rng = random.Random(0)
    hints = [h for group in words.WEAPON_HINTS.values() for h in group]
    picture = compose(["gun"], rng)
    said = [caption(picture, rng) for _ in range(600)]
    share = sum(any(h in c for h in hints) for c in said) / len(said)
    assert share == pytest.approx(0.35, abs=0.06)


def test_every_word_of_a_caption_is_a_word_of_the_world() -> None:
    rng = random.Random(0)
    said = {word for _ in range(4000) for word in words.words_in(caption(sample_picture(rng, Mix()), rng))}
    assert said <= words.caption_words()
    assert {"automobile", "under", "somebody"} <= said
    assert "rusty" not in words.caption_words()  # never taught


def test_a_caption_names_the_things_of_its_picture() -> None:
    rng = random.Random(2)
    for picture in PICTURES[:500]:
        text = caption(picture, rng, weapon_hints=0.0, family_words=0.0).lower()
        for thing in picture.things:
            assert any(w.lower() in text for w in (thing.name, *words.SYNONYMS.get(thing.name, ())))


def test_canonical_knows_names_synonyms_and_case() -> None:
    assert words.canonical("KITTY") == "cat"
    assert words.canonical("pencil  drawing") == "pencil sketch"
    assert words.canonical("biscuit") == "Biscuit"
    assert words.canonical("zebra") is None


def test_no_synonym_stands_for_two_things() -> None:
    spoken = [w for group in words.SYNONYMS.values() for w in group]
    assert len(spoken) == len(set(spoken))
    assert not set(spoken) & {*words.OBJECTS, *words.STYLES, *words.SCENES}


def test_prompts_for_are_the_same_for_the_same_seed_and_name_the_concept() -> None:
    for name in words.concepts():
        prompts = words.prompts_for(name, 8, seed=1)
        assert prompts == words.prompts_for(name, 8, seed=1)
        if name in words.OBJECTS or name in words.INDIVIDUALS:
            assert all(name in p for p in prompts)


def test_siblings_are_near_and_not_oneself() -> None:
    assert set(words.siblings("cat")) == {"dog", "rabbit", "fish", "catfish", "bird", "Mittens"}
    assert words.siblings("Biscuit") == ("dog", "Mittens")
    assert "neon" not in words.siblings("neon")


@pytest.mark.parametrize(
    "other", [{"counts": (0.0, 0.0, 1.0)}, {"hold_out": False}, {"individuals": ("Rusty", "Mittens")}]
)
def test_stored_pictures_are_those_of_their_mix(tmp_path: Path, other: dict[str, Any]) -> None:
    mix = Mix(**other)
    for _ in range(2):
        for drawn in (Mix(), mix):
            stored = drawings(3, 5, drawn, folder=tmp_path)
            assert np.array_equal(stored.pixels, drawings(3, 5, drawn).pixels)
    assert len(list(tmp_path.iterdir())) == 2
