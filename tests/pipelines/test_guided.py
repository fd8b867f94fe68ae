"""Guidances as pipelines: what the call takes, and that it does what the guidance does."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from erasure.errors import InputError
from erasure.guidance.localised import LocalisedRemoval
from erasure.pipelines.guided import StableDiffusionAttendExcitePipeline, StableDiffusionLocalisedPipeline
from tests import tiny

PROMPT = "a cat and a dog"
ASKED: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def localised(base: Any) -> Any:
    pipe: Any = StableDiffusionLocalisedPipeline.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, **given: Any) -> torch.Tensor:
    return pipe(PROMPT, generator=torch.Generator().manual_seed(0), **ASKED, **given).images


def test_it_does_what_the_guidance_does_and_is_the_base_without_concepts(base: Any, localised: Any) -> None:
    assert torch.equal(drawn(localised), drawn(base))
    with LocalisedRemoval(concepts=("cat",), preserve=("dog",), scale=3.0).applied_to(base):
        expected = drawn(base)
    found = drawn(localised, concepts=["cat"], preserve=["dog"], scale=3.0)
    assert torch.equal(found, expected)
    assert not torch.equal(found, drawn(base))
    assert torch.equal(drawn(localised), drawn(base))  # nothing is left


def test_its_signature_has_the_settings_beside_the_base_pipelines_parameters() -> None:
    base = list(inspect.signature(StableDiffusionPipeline.__call__).parameters)
    found = inspect.signature(StableDiffusionLocalisedPipeline.__call__).parameters
    assert [name for name in found if name in base] == base
    assert (found["concepts"].default, found["scale"].default, found["preserve"].default) == (None, 0.0, ())
    assert "peaks" in inspect.signature(StableDiffusionAttendExcitePipeline.__call__).parameters


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"scale": 2.0}, r"concepts: expected the words to act on, got none, but scale\. Name them"),
        ({"concepts": "cat"}, r"concepts: expected a list of words, got 'cat'\. Write concepts=\['cat'\]\."),
        ({"concepts": ["cat"], "scale": -1.0}, "scale: expected a number of at least 0"),
        ({"concepts": ["cat"], "preserve": ["cat"]}, "preserve: expected neighbours that stay"),
    ],
)
def test_wrong_settings_are_a_line(localised: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        drawn(localised, **given)
