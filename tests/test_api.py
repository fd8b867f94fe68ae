"""The shortest way in, and the front module."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import erasure
from erasure import Concept
from erasure.erasers import ERASERS
from erasure.errors import InputError, UnknownNameError
from tests import tiny

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize(
    ("concepts", "targets"),
    [
        (["cat", "Cat"], ["cat"]),
        ([Concept(target="cat", aliases=("kitty",)), "Kitty"], ["cat"]),
        ([Concept(target="cafe\u0301"), "caf\u00e9", "dog"], ["caf\u00e9", "dog"]),
    ],
)
def test_a_request_that_comes_twice_is_one(concepts: list[str | Concept], targets: list[str]) -> None:
    edit = erasure.erase(tiny.sd1(), concepts, eraser=erasure.UCE(rows="last-subject"))
    assert [concept.target for concept in edit.metadata.concepts] == targets


WRONG = {
    "Concept(target=3)": "concept.target: expected a text, got 3.",
    "Concept(target=b'cat')": "concept.target: expected a text, got b'cat'.",
    "Concept(target='cat', anchor=None)": "concept.anchor: expected a text, got None.",
    "Concept(target='cat', kind=3)": "Unknown kind of concept '3'.",
    "Concept(target='cat', preserve='dog')": "concept.preserve: expected a tuple of texts, got 'dog'. Write ('dog',).",
    "Concept(target='cat', preserve={'dog': 1})": "concept.preserve: expected a tuple of texts, got {'dog': 1}.",
    "Concept(target='cat', aliases=('kitty', 3))": "concept.aliases: expected a text, got 3.",
    "SamplingSettings(steps='3')": "sampling.steps: expected an integer, got '3'.",
    "UCE(0.5)": "uce: expected settings by name, got 0.5.",
    "UCE(reg='x')": "uce.reg: expected a number, got 'x'.",
    "SamplingEdit(guidances=3, metadata=None)": "SamplingEdit.guidances: expected a tuple of Guidance, got 3.",
    "SamplingEdit(guidances=(), metadata=None)": "SamplingEdit.metadata: expected EditMetadata, got None.",
    "WeightEdit(changes={'unet': 3}, metadata=None)": "WeightEdit.changes: expected a mapping of texts to Dense",
    "erase(pipe, 3)": "erase.concepts: expected a text, Concept or a list of texts or Concept, got 3.",
    "erase(pipe, [3])": "erase.concepts: expected a text, Concept or a list of texts or Concept, got [3].",
    "erase(pipe, [Concept(target='cat', anchor='dog'), 'cat'])": "concepts.1: expected a concept that no other request",
    "erase(pipe, 'cat', preserve='dog')": "erase.preserve: expected a list of texts, got 'dog'. Write ['dog'].",
    "erase(pipe, 'cat', eraser='uce')": "erase.eraser: expected Eraser or None, got 'uce'.",
    "erase(pipe, 'cat', seed='1')": "erase.seed: expected a whole number, got '1'.",
    "erase(pipe, 'cat', seed=-1)": "seed: expected a whole number from 0 to 2^63 - 1, got -1.",
    "make_eraser(3)": "Registry.make.name: expected a text, got 3.",
    "load_model(None)": "load_model.name: expected a text or a Path, got None.",
    "load_model('')": "model: expected a folder with a model_index.json, got ''.",
    "load_model('tinyworld', device='gpu')": "device: expected 'cpu', 'cuda', 'cuda:1' or 'mps', got 'gpu'.",
    "ledger.remove(pipe, UCE(), 'cat')": "Ledger.remove.concepts: expected a list of Concept, got 'cat'.",
    "ledger.remove(pipe, UCE(), ['cat'])": "Ledger.remove.concepts: expected a list of Concept, got ['cat'].",
    "ledger.remove(pipe, 'uce', [Concept(target='cat')])": "Ledger.remove.eraser: expected Eraser, got 'uce'.",
    "ledger.remove(pipe, UCE, [Concept(target='cat')])": "Ledger.remove.eraser: expected Eraser, got <class",
    "ledger.remove(pipe, UCE(), [Concept(target='cat')], sed=1)": "Unknown argument of Ledger.remove 'sed'. Did you",
    "ledger.undo(1)": "Ledger.undo.name: expected a text, got 1.",
    "Ledger.open(3)": "Ledger.open.path: expected a text or a Path, got 3.",
    "Ledger.open('a\\0b')": "Ledger.open.path: expected a path that the system takes, got 'a\\x00b'.",
    "Edit.load('\\ud800')": "Edit.load.path: expected a path that the system takes, got '\\ud800'.",
    "load_model('x' * 300)": "load_model.name: expected a path that the system takes, got 'xxx",
    "erase(pipe, 'cat').save('')": "'.': expected a file to write, got a folder.",
    "sample(pipe, ['\\ud800'], [0])": "prompts: expected text in Unicode, got '\\ud800'.",
    "erase(pipe, 'cat').as_lora(pipe, rank=0)": "rank: expected a whole number from 1, got 0.",
    "erase(pipe, 'cat').edited('nothing', pipe.unet.conv_in.weight)": "Unknown parameter of the edit 'nothing'.",
    "UCE().fit('cat', None)": "UCE.fit.concepts: expected a list of Concept, got 'cat'.",
    "erase(without('scheduler'), 'cat')": "model: expected a pipeline with a scheduler, got StableDiffusionPipeline",
    "sample(without('tokenizer'), ['a cat'], [0])": "model: expected a pipeline with a tokenizer, got StableDiffusion",
    "sample(mixed, ['a cat'], [0])": "sample: expected weights of one precision, all in memory, that cpu computes in",
    "sample(pipe, 'a cat', [0])": "sample.prompts: expected a list of texts or Conditioning, got 'a cat'.",
    "sample(pipe, [3], [0])": "sample.prompts: expected a list of texts or Conditioning, got [3].",
    "sample(pipe, ['a cat'], ['x'])": "sample.seeds: expected a list of whole numbers, got ['x'].",
    "sample(pipe, ['a cat'], [2**64])": "sample.seeds: expected whole numbers from 0 to 2^63 - 1, got 1844674",
}
"""Calls with values that cannot be used, and the beginnings of their errors."""
_CALL_EACH = """
import json, sys, tempfile
import erasure
from erasure import *
from tests import tiny


def without(component):
    lacking = tiny.sd1()
    setattr(lacking, component, None)
    return lacking


pipe, mixed, answers = tiny.sd1(), tiny.sd1(), {}
mixed.text_encoder.half()
ledger = Ledger.open_or_create(tempfile.mkdtemp(), pipe, "tiny")
for call in json.loads(sys.argv[1]):
    try:
        answers[call] = f"returned {eval(call)!r}"
    except ErasureError as error:
        answers[call] = str(error)
    except Exception as error:
        answers[call] = f"{type(error).__name__}: {error}"
print(json.dumps(answers))
"""


def test_values_that_cannot_be_used_are_one_line() -> None:
    # In a process of its own: the type checks of the tests refuse some of the calls before the library sees them.
    command = [sys.executable, "-c", _CALL_EACH, json.dumps(list(WRONG))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    for call, message in WRONG.items():
        assert answers[call].startswith(message), f"{call}: {answers[call]}"
        assert "\n" not in answers[call]


@pytest.mark.parametrize("name", ["unet.conv_in.bias", "vae.decoder.conv_in.bias"])
def test_a_weight_of_the_pipe_that_is_not_finite_is_named(name: str) -> None:
    pipe = tiny.sd1()
    component, _, inner = name.partition(".")
    getattr(pipe, component).get_parameter(inner).data[0] = float("nan")
    with pytest.raises(InputError, match=f"expected finite weights, got inf or nan in '{name}'"):
        erasure.erase(pipe, "cat")


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
