"""The shortest way in, and the front module."""

from typing import Any

import pytest

import erasure
from erasure import Concept
from erasure.erasers import ERASERS
from erasure.errors import InputError, UnknownNameError
from tests import tiny


def test_a_word_is_erased_in_one_call_and_the_pipe_is_untouched() -> None:
    pipe = tiny.sd1()
    before = erasure.backbone_of(pipe).fingerprint()
    edit = erasure.erase(pipe, "Van Gogh", eraser=erasure.UCE(), preserve=["Monet", "Rembrandt"], kind="style", seed=0)
    assert erasure.backbone_of(pipe).fingerprint() == before
    assert edit.metadata.concepts == (Concept(target="Van Gogh", preserve=("Monet", "Rembrandt"), kind="style"),)
    with edit.applied_to(pipe):
        assert erasure.backbone_of(pipe).fingerprint() != before


def test_concepts_are_taken_as_they_are_and_words_get_the_arguments() -> None:
    own = Concept(target="gun", kind="unsafe", anchor="flower")
    edit = erasure.erase(tiny.sd1(), [own, "cat"], anchor="dog", eraser=erasure.UCE(reg=0.1, rows="last-subject"))
    assert edit.metadata.concepts == (own, Concept(target="cat", anchor="dog"))
    assert edit.metadata.settings["reg"] == 0.1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"regg": 1.0}, UnknownNameError, "Unknown uce setting 'regg'. Did you mean 'reg'"),
        ({"reg": "1.0"}, InputError, "uce.reg: expected a number, got '1.0'"),
        ({"reg": 0.0}, InputError, "uce.reg: expected a number greater than 0, got 0.0."),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        erasure.erase(tiny.sd1(), "cat", eraser=erasure.UCE(**settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_eraser_is_a_public_name() -> None:
    erasers = {kind.__name__ for kind in ERASERS.classes().values() if kind.__module__.startswith("erasure.")}
    assert erasers <= set(erasure.__all__)
    assert all(getattr(erasure, kind.__name__) is kind for kind in ERASERS.classes().values())


def test_the_exported_names() -> None:
    kinds = {"Concept", "Conditioning", "Edit", "Eraser", "ErasureError", "Ledger", "Progress", "SamplingEdit"}
    functions = {"backbone_of", "erase", "eraser_names", "load_model", "make_eraser", "sample"}
    erasers = {kind.__name__ for kind in ERASERS.classes().values() if kind.__module__.startswith("erasure.")}
    expected = {*kinds, *functions, *erasers, "SamplingSettings", "WeightEdit", "__version__"}
    assert set(erasure.__all__) == expected


def test_every_public_name_is_there_and_others_are_not() -> None:
    for name in erasure.__all__:
        assert getattr(erasure, name) is not None
    assert set(erasure.__all__) <= set(dir(erasure))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = erasure.nothing
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = erasure.Nothing
