"""The shortest way in, and the front module."""

from typing import Any

import pytest

import erasure
from erasure import Concept
from erasure.errors import InputError, UnknownNameError
from tests import tiny


def test_a_word_is_erased_in_one_call_and_the_pipe_is_untouched() -> None:
    pipe = tiny.sd1()
    before = erasure.backbone_of(pipe).fingerprint()
    edit = erasure.erase(pipe, "Van Gogh", method="uce", preserve=["Monet", "Rembrandt"], kind="style", seed=0)
    assert erasure.backbone_of(pipe).fingerprint() == before
    assert edit.metadata.concepts == (Concept(target="Van Gogh", preserve=("Monet", "Rembrandt"), kind="style"),)
    with edit.applied_to(pipe):
        assert erasure.backbone_of(pipe).fingerprint() != before


def test_concepts_are_taken_as_they_are_and_words_get_the_arguments() -> None:
    own = Concept(target="gun", kind="unsafe", anchor="flower")
    edit = erasure.erase(tiny.sd1(), [own, "cat"], anchor="dog", reg=0.1, rows="last-subject")
    assert edit.metadata.concepts == (own, Concept(target="cat", anchor="dog"))
    assert edit.metadata.settings["reg"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "ucee"}, UnknownNameError, "Did you mean 'uce'"),
        ({"regg": 1.0}, UnknownNameError, "Unknown uce setting 'regg'. Did you mean 'reg'"),
        ({"reg": "1.0"}, InputError, "uce.reg: expected a valid number, got '1.0'"),
        ({"reg": 0.0}, InputError, "uce.reg: expected a number greater than 0, got 0.0."),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        erasure.erase(tiny.sd1(), "cat", **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in erasure.__all__:
        assert getattr(erasure, name) is not None
    assert set(erasure.__all__) <= set(dir(erasure))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = erasure.nothing
