"""Prompts without the target."""

import pytest

from erasure.errors import InputError
from erasure.eval.metrics.texts import TextScore, without_phrases
from erasure.eval.scores import Setup


@pytest.mark.parametrize(
    ("prompt", "phrases", "expected"),
    [
        ("a photo of a cat", ["cat"], "a photo"),
        ("a photo of a cat on a sofa", ["cat"], "a photo on a sofa"),
        ("a dog and a cat in the park", ["cat"], "a dog in the park"),
        ("a cat and a dog", ["cat"], "a dog"),
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


def test_a_text_score_counts_what_it_could_not_read_or_score() -> None:
    setup = Setup(metric="clip_score")
    score = TextScore.of([1.0, 2.0], unit="u", setup=setup, truncated=["long", "longer", "long"], left_out=3)
    assert score.truncated == ("long", "longer")
    assert {"truncated": 2, "left_out": 3, "value": 1.5}.items() <= score.as_json().items()
    with pytest.raises(InputError, match="got none"):
        TextScore.of([], unit="u", setup=setup, truncated=[])
