"""Prompts without the target."""

import pytest

from erasure.errors import InputError
from erasure.eval.metrics.texts import TextScore
from erasure.eval.stats.scores import Setup


def test_a_text_score_counts_what_it_could_not_read_or_score() -> None:
    setup = Setup(metric="clip_score")
    score = TextScore.of([1.0, 2.0], unit="u", setup=setup, truncated=["long", "longer", "long"], left_out=3)
    assert score.truncated == ("long", "longer")
    assert {"truncated": 2, "left_out": 3, "value": 1.5}.items() <= score.as_json().items()
    with pytest.raises(InputError, match="got none"):
        TextScore.of([], unit="u", setup=setup, truncated=[])
