"""What every guidance owes: a file in erasure/guidance/ that defines one is held to it by being there."""

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.edits import WeightEdit
from erasure.errors import InputError
from erasure.guidance import Applicable, Guidance, guidances
from erasure.sampling import SamplingSettings, sample
from tests import tiny, tiny_families
from tests.pieces import guidance

KINDS = [pytest.param(kind, id=name) for name, kind in sorted(guidances().items())]
PROMPTS = ["a cat and a dog", "a tree"]


def latents(pipe: Any) -> torch.Tensor:
    return sample(pipe, PROMPTS, [0, 1], SamplingSettings(steps=2, guidance_scale=4.0), output="latents")


def test_an_edit_is_applied_as_a_guidance_is() -> None:
    assert set(guidances()) >= {"a-star", "attend-and-excite", "localised"}
    assert issubclass(WeightEdit, Applicable)
    assert issubclass(Guidance, Applicable)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_frozen_dataclass_with_a_docstring_that_names_its_source(kind: Any) -> None:
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    module = inspect.getmodule(kind)
    assert module is not None
    assert re.search(r"arXiv:\d{4}\.\d{4,5}", str(module.__doc__))
    assert set(inspect.signature(kind).parameters) >= {"concepts"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_acts_inside_the_with_alone_and_changes_no_weight(kind: Any, family: str) -> None:
    acts_inside_the_with_alone(kind, tiny.FAMILIES[family]())


def acts_inside_the_with_alone(kind: Any, pipe: Any) -> None:
    denoiser = backbone_of(pipe).denoiser
    before, weights = latents(pipe), {name: value.clone() for name, value in denoiser.state_dict().items()}
    with guidance(kind, pipe).applied_to(pipe) as inside:
        assert inside is pipe
        first, again = latents(pipe), latents(pipe)
    assert torch.equal(first, again)  # nothing is left from one loop to the next
    assert not torch.equal(first[0], before[0])
    assert kind.every_prompt or torch.equal(first[1], before[1])  # a prompt without the concept
    assert torch.equal(latents(pipe), before)
    assert all(torch.equal(weights[name], value) for name, value in denoiser.state_dict().items())


@pytest.mark.parametrize("kind", [each for each in KINDS if guidances()[str(each.id)].every_prompt])
def test_one_that_acts_on_every_prompt_can_be_told_not_to(kind: Any) -> None:
    pipe = tiny.sd1()
    before = latents(pipe)
    with guidance(kind, pipe, only_named=True).applied_to(pipe):
        inside = latents(pipe)
    assert torch.equal(inside[1], before[1])
    assert not torch.equal(inside[0], before[0])


@pytest.mark.parametrize("family", tiny.JOINT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_is_covered_or_refused_in_one_line(kind: Any, family: str) -> None:
    pipe = tiny.JOINT[family]()
    if kind.needs in backbone_of(pipe).abilities:
        acts_inside_the_with_alone(kind, pipe)
        return
    with (
        pytest.raises(InputError, match="expected a model that this guidance is written for") as caught,
        kind(concepts=("cat",)).applied_to(pipe),
    ):
        pass
    assert "\n" not in str(caught.value)
    assert not {"encode_prompt", "check_inputs"} & vars(pipe).keys()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["pixart", "sana"])
@pytest.mark.parametrize("kind", [each for each in KINDS if guidances()[str(each.id)].needs == "layer guidance"])
def test_one_that_changes_layers_acts_on_transformers_of_one_call(kind: Any, family: str) -> None:
    acts_inside_the_with_alone(kind, tiny_families.built(family))


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_inside_leaves_nothing_behind(kind: Any) -> None:
    pipe = tiny.sd1()
    with pytest.raises(RuntimeError, match="stop"), guidance(kind, pipe).applied_to(pipe):
        raise RuntimeError("stop")
    assert not {"step", "set_timesteps", "scale_model_input"} & vars(pipe.scheduler).keys()
    assert not {"encode_prompt", "check_inputs"} & vars(pipe).keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.unet.modules())
