"""Concepts, their templates, and the errors of what cannot be one."""

import json
import re
import unicodedata
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure import UCE, erase
from erasure.concept import Concept, Kind, normalized
from erasure.errors import ErasureError, InputError, UnknownNameError, unknown_name
from erasure.io.text import names_something, without_invisible
from erasure.prompts import blank, fill, preserved_templates, speaks_of, templates, without_phrases
from tests import tiny

WORDS = st.text(min_size=1).filter(lambda text: names_something(without_invisible(text)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": " "}, "concept.target: expected words, got ''"),
        ({"target": "cat", "aliases": ("",)}, "concept.aliases: expected words, got ''"),
        ({"target": "!?"}, "concept.target: expected words, got '!?'"),
        ({"target": "cat", "anchor": "..."}, "concept.anchor: expected words, got '...'"),
        ({"target": "cat", "preserve": ("dog", "")}, "concept.preserve: expected words, got ''"),
        ({"target": "cat", "preserve": ("Cat",)}, "concept.preserve: expected a kept concept, got 'Cat'"),
        ({"target": "cat", "aliases": ("kitty",), "preserve": ("kitty",)}, "a name of the target 'cat'"),
        ({"target": "cat", "anchor": " CAT"}, "concept.anchor: expected another concept"),
    ],
)
def test_what_is_no_concept_is_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Concept(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(
    target=WORDS, anchor=st.just("") | WORDS, kind=st.sampled_from(get_args(Kind)), aliases=st.lists(WORDS, max_size=3)
)
def test_json_returns_the_same_concept(target: str, anchor: str, kind: Kind, aliases: list[str]) -> None:
    if normalized(anchor) in {normalized(name) for name in (target, *aliases)}:
        anchor = ""
    concept = Concept(target=target, anchor=anchor, kind=kind, aliases=tuple(aliases))
    assert Concept.from_json(json.loads(json.dumps(concept.as_json()))) == concept


def test_a_name_is_one_line() -> None:
    concept = Concept(target="a\n002 cat", anchor="b\tdog", preserve=("Van\u00a0Gogh",))
    assert (concept.target, concept.anchor, concept.preserve) == ("a 002 cat", "b dog", ("Van Gogh",))


def test_json_with_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown concept field 'anchr'. Did you mean 'anchor'"):
        Concept.from_json({"target": "cat", "anchr": "dog"})
    with pytest.raises(InputError, match="expected a target"):
        Concept.from_json({})


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_template_holds_the_name_once_and_has_a_blank_without_it(kind: Kind) -> None:
    assert templates(kind)[0] == "{}"
    for template in templates(kind):
        assert template.count("{}") == 1
        # What is left when the name goes is made of the template's own words.
        assert set(re.findall(r"\w+", blank(kind, template))) <= set(re.findall(r"\w+", template))
    assert set(templates(kind)) <= set(preserved_templates(kind))


def test_the_article_fits_the_name() -> None:
    assert fill("a photo of a {}", "umbrella") == "a photo of an umbrella"
    assert fill("a photo of a {}", "cat") == "a photo of a cat"
    assert fill("{} style", "art") == "art style"


def test_unknown_names_suggest_the_nearest_whatever_its_case() -> None:
    error = unknown_name("eraser", "UCF", ["uce", "esd"])
    assert str(error) == "Unknown eraser 'UCF'. Did you mean 'uce'? Known: esd, uce."
    assert "Did you mean" not in str(unknown_name("eraser", "zzz", ["uce"]))
    assert isinstance(error, ErasureError)
    assert isinstance(error, LookupError)


@pytest.mark.parametrize(
    ("prompt", "speaks"),
    [
        ("a cat, asleep", True),
        ("The CAT's  tail", True),
        ("a tabby   cat.", True),
        ("catfish and concatenation", False),
        ("a dog", False),
        ("", False),
    ],
)
def test_a_prompt_speaks_of_a_concept_by_whole_words_whatever_stands_beside_them(prompt: str, speaks: bool) -> None:
    assert speaks_of(prompt, [Concept(target="cat", aliases=("tabby cat",))]) == speaks


DECOMPOSED = unicodedata.normalize("NFD", "Salvador Dalí")


def test_names_are_kept_composed_and_compared_whatever_their_composition() -> None:
    concept = Concept(target=DECOMPOSED, anchor=DECOMPOSED[9:], preserve=("Ａ",), aliases=("Da\u0301li",))
    assert (concept.target, concept.anchor, concept.aliases) == ("Salvador Dalí", "Dalí", ("Dáli",))
    assert normalized("salvador  DALI\u0301") == normalized("Salvador Dalí")
    assert speaks_of(f"a portrait by {DECOMPOSED}", [Concept(target="dalí")])
    assert without_phrases(f"a portrait by {DECOMPOSED}", ["Salvador Dalí"]) == "a portrait"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"target": 5}, "concept.target: expected a"),
        ({"target": "cat", "preserve": "dog"}, "concept.preserve: expected a"),
        ({"target": "cat", "aliases": [1]}, "concept.aliases.0: expected a"),
        ({"target": "cat", "kind": ["object"]}, "concept.kind: expected 'object', 'style'"),
        ({"target": "cat", "anchor": None}, "concept.anchor: expected a"),
        ({"target": "c\ud800"}, "concept.target: expected text in Unicode"),
    ],
)
def test_json_of_a_wrong_type_is_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Concept.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", [("Straße", "STRASSE"), ("\ufb01sh", "fish")])
def test_names_of_other_tokens_are_two(pair: tuple[str, str]) -> None:
    one, other = (tiny.tokenizer("clip")(name).input_ids for name in pair)
    assert one != other
    assert normalized(pair[0]) != normalized(pair[1])
    assert normalized("STRAßE") == normalized("Straße")


def test_blanks_around_a_name_do_not_count() -> None:
    concept = Concept(target=" cat", aliases=("kitty ",), preserve=("\tdog",))
    assert concept == Concept(target="cat", aliases=("kitty",), preserve=("dog",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ca\u200bt", "cat"),
        ("\ufeffcat", "cat"),
        ("ca\u00adt", "cat"),
        ("\u202acat\u202c", "cat"),
        ("cat\u2067\u2069", "cat"),
        ("cat\u200d", "cat"),
        ("c\u200cat\ufe0f", "cat"),
        (" \u2060 New\u200b York\u3164 ", "New York"),
        ("Dal\u200bi\u0301", "Dal\u00ed"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),  # Persian is written with it
        ("\u2764\ufe0f", "\u2764"),  # an emoji alone is a name
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),  # one emoji of two
    ],
)
def test_a_name_holds_no_invisible_characters(text: str, expected: str) -> None:
    assert Concept(target=text).target == expected
    assert Concept(target="a", anchor=text, preserve=(text, expected)).preserve == (expected,)
    assert normalized(text) == normalized(expected)
    for fields in ({"anchor": text}, {"preserve": (text,)}):
        with pytest.raises(InputError):
            Concept(target=expected, **fields)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u00ad", "\u3164", "\u200d"])
def test_a_name_that_nobody_sees_is_none(text: str) -> None:
    with pytest.raises(InputError, match="expected words"):
        Concept(target=text)


def test_a_name_that_comes_twice_counts_once() -> None:
    concept = Concept(
        target="Salvador Dal\u00ed",
        aliases=("salvador  dali\u0301", "Dali", "DALI", "Da\u00adli"),
        preserve=("Monet", "monet", " MONET\u200b", "Klee"),
    )
    assert concept.names == ("Salvador Dal\u00ed", "Dali")
    assert concept.preserve == ("Monet", "Klee")


def test_a_repeated_alias_adds_no_row() -> None:
    pipe = tiny.sd1()
    plain, doubled = (
        erase(pipe, Concept(target="cat", aliases=names), eraser=UCE(rows="last-subject"))
        for names in (("kitty",), ("Cat", "kitty", "KITTY\u200b", "cat "))
    )
    for name, change in plain.changes.items():
        weight = dict(pipe.unet.named_parameters())[name.removeprefix("unet.")].detach()
        assert torch.equal(change.of(weight), doubled.changes[name].of(weight))
