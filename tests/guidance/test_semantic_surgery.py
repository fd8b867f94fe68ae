"""Semantic Surgery: the gate, the subtraction, and what leaves every bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.guidance.base import named_prompts
from erasure.guidance.semantic_surgery import SemanticSurgeryGuidance, _Surgery, presence, presences
from erasure.sampling import SamplingSettings, sample
from tests import tiny

ALL = slice(None)


def latents(pipe: Any, prompts: list[str]) -> Tensor:
    settings = SamplingSettings(steps=2, guidance_scale=4.0)
    return sample(pipe, prompts, list(range(len(prompts))), settings, output="latents")


def changed(pipe: Any, prompt: str, **settings: Any) -> Tensor:
    """Return a prompt's states as the denoiser reads them."""
    states = backbone_of(pipe).encode([prompt])
    with named_prompts(pipe, ["cat"]) as named:
        direction = _Surgery(SemanticSurgeryGuidance(**settings), pipe, named).of_prompt(states)
    return states.states[0].detach() if direction is None else states.states[0].detach() - direction.states


def test_the_specifications_example() -> None:
    empty, named, prompt = (
        torch.tensor(rows).double()
        for rows in (
            [[1.0, 0, 0], [0, 1, 0], [0, 1, 0]],
            [[1.0, 0, 0], [0, 1, 2], [0, 1, 1]],
            [[1.0, 0, 0], [0, 0, 1], [1, 1, 1]],
        )
    )
    direction = named - empty
    held = presence(direction, prompt, [ALL])
    assert held == pytest.approx(0.525783, abs=1e-6)
    rho = SemanticSurgeryGuidance(concepts=("cat",), beta=0.5).gate(held)
    assert rho == pytest.approx(0.784007, abs=1e-5)
    expected = torch.tensor([[1, 0, 0], [0, 0, -0.568014], [1, 1, 0.215993]]).double()
    torch.testing.assert_close(prompt - rho * direction, expected, atol=1e-5, rtol=1e-5)
    assert presence(0 * direction, prompt, [ALL]) == 0


@pytest.mark.parametrize(("held", "rho"), [(0.10, 0.268941), (0.12, 0.5), (0.14, 0.731059)])
def test_the_gate(held: float, rho: float) -> None:
    assert SemanticSurgeryGuidance(concepts=("cat",)).gate(held) == pytest.approx(rho, abs=1e-6)


def test_the_concept_alone_becomes_the_empty_prompt() -> None:
    pipe = tiny.sd1()
    empty = backbone_of(pipe).encode([""]).states[0].detach()
    torch.testing.assert_close(changed(pipe, "cat", concepts=("cat",), beta=-9.0), empty, check_dtype=False)


def test_start_of_text_stays_and_the_list_has_no_order() -> None:
    pipe = tiny.sd1()
    first = changed(pipe, "a cat and a dog", concepts=("cat", "dog"), beta=-1.0)
    assert torch.equal(first, changed(pipe, "a cat and a dog", concepts=("dog", "cat", "dog"), beta=-1.0))
    assert torch.equal(first[0].float(), backbone_of(pipe).encode(["a cat and a dog"]).states[0, 0].detach())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_below_beta_every_bit_stays(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    held = presences(backbone_of(pipe), "cat", ["a cat", "a tree"])
    plain = latents(pipe, ["a cat", "a tree"])
    with SemanticSurgeryGuidance(concepts=("cat",), beta=max(held) + 0.01).applied_to(pipe):
        assert torch.equal(latents(pipe, ["a cat", "a tree"]), plain)
    with SemanticSurgeryGuidance(concepts=("cat",), beta=(held[0] + held[1]) / 2, gamma=1e-4).applied_to(pipe):
        between = latents(pipe, ["a cat", "a tree"])
    with_it, without = (0, 1) if held[0] > held[1] else (1, 0)
    assert not torch.equal(between[with_it], plain[with_it])
    assert torch.equal(between[without], plain[without])


def test_more_names_than_fit_into_a_text_are_refused_in_one_line() -> None:
    pipe = tiny.sd1()
    names = tuple(f"abcdefgh {letter}" for letter in "abcdefghijkl")
    with (
        SemanticSurgeryGuidance(concepts=names, beta=-1.0).applied_to(pipe),
        pytest.raises(InputError, match="expected concepts in 'a cat' whose names fit into one text, got 12") as caught,
    ):
        latents(pipe, ["a cat"])
    assert "\n" not in str(caught.value)
