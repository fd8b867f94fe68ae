"""Where words are among the states, and the rows of a batch."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import Conditioning, concatenate
from erasure.errors import InputError
from erasure.prompts import without_phrases
from tests import tiny


@pytest.fixture(scope="module")
def backbone() -> Any:
    return backbone_of(tiny.sd1(vocabulary="clip"))


def words_at(states: Conditioning, row: int, positions: list[int]) -> str:
    start, end = states.offsets[row][positions[0]][0], states.offsets[row][positions[-1]][1]
    return states.prompts[row][start:end]


def test_a_word_is_found_whole_in_any_case_and_each_time(backbone: Any) -> None:
    states = backbone.encode(["a catfish, a Cat and another cat"])
    spans = states.spans(0, "cat")
    assert [words_at(states, 0, span) for span in spans] == ["Cat", "cat"]
    assert states.word_positions(0, "cat") == [at for span in spans for at in span]


def test_a_phrase_of_several_tokens_and_odd_spaces_is_found(backbone: Any) -> None:
    states = backbone.encode(["a painting by  Van   Gogh, supercalifragilistic"])
    assert words_at(states, 0, states.word_positions(0, "van gogh")) == "Van   Gogh"
    assert len(states.word_positions(0, "supercalifragilistic")) > 2


def test_words_that_are_absent_or_cut_off_are_an_error(backbone: Any) -> None:
    states = backbone.encode(["a dog", "very " * 100 + "cat"])
    for row in range(2):
        with pytest.raises(InputError, match="got 'cat'"):
            states.word_positions(row, "cat")
    with pytest.raises(InputError, match="expected words, got ' '"):
        states.spans(0, " ")


def test_a_prompt_that_is_too_long_keeps_its_end_of_text(backbone: Any) -> None:
    states = backbone.encode(["very " * 100])
    assert states.eot.item() == tiny.POSITIONS - 1
    assert states.ids[0, -1] == backbone.pipe.tokenizer.eos_token_id


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_first_end_of_text_follows_the_last_word(family: str) -> None:
    states = backbone_of(tiny.FAMILIES[family]()).encode(["", "ab", "a b c"])
    assert states.eot.tolist() == [1, 3, 4]


def test_select_expand_and_concatenate_give_the_rows_asked_for(backbone: Any) -> None:
    states = backbone.encode(["a cat", "a dog"])
    assert states.select([1, 0, 1]).prompts == ("a dog", "a cat", "a dog")
    assert torch.equal(states.select([1]).expand(3).states, states.states[[1, 1, 1]])
    joined = concatenate([states.select([1]), states.select([0])])
    assert joined.prompts == ("a dog", "a cat")
    assert torch.equal(joined.states, states.states[[1, 0]])
    with pytest.raises(InputError, match="expected one row"):
        states.expand(2)


def test_to_changes_the_dtype_of_states_alone(backbone: Any) -> None:
    half = backbone.encode(["a cat"]).to(dtype=torch.float16)
    assert half.states.dtype == torch.float16
    assert half.ids.dtype == torch.long


@pytest.mark.parametrize(
    ("prompt", "phrases", "expected"),
    [
        ("a photo of a cat", ["cat"], "a photo"),
        ("a photo of a cat on a sofa", ["cat"], "a photo on a sofa"),
        ("a dog and a cat in the park", ["cat"], "a dog in the park"),
        ("a cat and a dog", ["cat"], "a dog"),
        ("a photo of a cat and a dog at night", ["cat"], "a photo of a dog at night"),
        ("a dog, a cat and a tree", ["cat"], "a dog, a tree"),
        ("Biscuit and Mittens", ["Biscuit"], "Mittens"),
        ("A CAT", ["cat"], ""),
        ("portrait by Vincent van  Gogh, oil", ["van Gogh", "Vincent van Gogh"], "portrait, oil"),
        ("a house in the style of Van Gogh", ["van gogh"], "a house in the style"),
        ("Van Gogh's garden", ["Van Gogh"], "garden"),
        ("concatenate the category", ["cat"], "concatenate the category"),
        ("two cats", ["cat"], "two cats"),  # another word
        ("two cats", ["cat", "cats"], "two"),
        ("what (else)? 3.5", ["(else)?"], "what 3.5"),
        ("a tree  in   the rain", ["cat"], "a tree  in   the rain"),  # nothing to take out, nothing touched
        ("the", ["cat"], "the"),
        ("Null", ["cat"], "Null"),
    ],
)
def test_the_phrase_goes_with_what_joins_it(prompt: str, phrases: list[str], expected: str) -> None:
    assert without_phrases(prompt, phrases) == expected


def test_an_empty_phrase_is_refused() -> None:
    with pytest.raises(InputError, match="expected words, got ' '"):
        without_phrases("a cat", [" "])
