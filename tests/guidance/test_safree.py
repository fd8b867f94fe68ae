"""SAFREE: projectors, triggers, the rule of steps, and what of a prompt's states is replaced."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.guidance.base import named_prompts
from erasure.guidance.safree import SAFREEGuidance, _Filtering, filtered, projector
from erasure.sampling import SamplingSettings, sample
from tests import tiny

CONCEPT = torch.tensor([[1.0, 0, 0, 0]]).double()
MASKED = torch.tensor([[2.0, 1, 0, 0], [0.5, 2, 1, 0]]).double()


def latents(pipe: Any, prompts: list[str]) -> Tensor:
    settings = SamplingSettings(steps=2, guidance_scale=4.0)
    return sample(pipe, prompts, list(range(len(prompts))), settings, output="latents")


def test_the_specifications_example() -> None:
    concept, prompt = projector(CONCEPT), projector(MASKED)
    safree = SAFREEGuidance(concepts=("cat",))
    assert safree.triggers(MASKED, concept, torch.zeros(4).double()).tolist() == [False, True]
    expected = [
        [0.942029, 0.115942, -0.202899, 0],
        [0.115942, 0.768116, 0.405797, 0],
        [-0.202899, 0.405797, 0.289855, 0],
    ]
    torch.testing.assert_close(prompt[:3], torch.tensor(expected).double(), atol=1e-6, rtol=1e-5)
    states = torch.tensor([[2.0, 1, 1, 0], [1, 2, 0, 1]]).double()
    safe = filtered(states, concept, prompt)
    torch.testing.assert_close(
        safe, torch.tensor([[0, 1.405797, 0.289855, 0], [0, 1.652174, 0.608696, 0]]).double(), atol=1e-6, rtol=1e-5
    )
    distance = 1 - float(torch.cosine_similarity(safe, states, dim=-1).mean())
    assert distance == pytest.approx(0.375784, abs=1e-6)
    assert safree.last_step(distance) == 0
    assert SAFREEGuidance(concepts=("cat",), steps="paper").last_step(distance) == 6


@pytest.mark.parametrize(("distance", "last"), [(0.3, 0), (0.45, 0), (0.5, 2), (0.5333, 5), (0.55, 7), (0.6, 10)])
def test_the_rule_of_steps(distance: float, last: int) -> None:
    assert SAFREEGuidance(concepts=("cat",)).last_step(distance) == last
    assert SAFREEGuidance(concepts=("cat",), steps="all").last_step(distance) > 1000


def test_projectors() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    found = projector(rows)
    torch.testing.assert_close(found @ found, found)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(projector(rows[[2, 0, 1]]), found)
    torch.testing.assert_close(projector(torch.cat([rows, rows[:1]])), found)
    states, prompt = torch.randn(5, 8).double(), projector(torch.randn(4, 8).double())
    assert (filtered(states, found, prompt) @ found).abs().max() < 1e-12
    apart = torch.eye(8).double()
    untouched = torch.tensor([[0.0, 3, 4, 0, 0, 0, 0, 0]]).double()
    torch.testing.assert_close(filtered(untouched, projector(apart[:1]), projector(apart[1:3])), untouched)


def test_a_prompt_of_one_token_is_compared_with_the_empty_one() -> None:
    safree, concept = SAFREEGuidance(concepts=("cat",)), projector(CONCEPT)
    one = torch.tensor([[0.0, 2, 0, 0]]).double()
    assert safree.triggers(one, concept, torch.tensor([0.0, 1, 0, 0]).double()).tolist() == [True]
    assert safree.triggers(one, concept, torch.tensor([0.0, 3, 0, 0]).double()).tolist() == [False]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("trailing", [False, True])
def test_words_alone_are_replaced_unless_the_trailing_states_are_asked_for(family: str, trailing: bool) -> None:
    pipe = tiny.FAMILIES[family]()
    states = backbone_of(pipe).encode(["a cat"])
    end = int(states.eot[0])
    with named_prompts(pipe, ["cat"]) as named, torch.no_grad():
        run = _Filtering(SAFREEGuidance(concepts=("cat",), trailing=trailing), pipe, named)
        parts = run.of_prompt(states)
    assert parts
    for part in parts:
        changed = part.change.any(-1)
        assert not changed[0]
        assert changed[1:end].any()
        assert bool(changed[end:].any()) is trailing


def test_without_a_token_that_carries_a_concept_every_bit_stays() -> None:
    pipe = tiny.sd1()
    plain = latents(pipe, ["a cat", ""])
    with SAFREEGuidance(concepts=("cat",), alpha=1e9).applied_to(pipe):
        assert torch.equal(latents(pipe, ["a cat", ""]), plain)
    with SAFREEGuidance(concepts=("cat",), alpha=0.0).applied_to(pipe):
        changed = latents(pipe, ["a cat", ""])
    assert not torch.equal(changed[0], plain[0])
    assert torch.equal(changed[1], plain[1])  # the empty prompt has no token


def test_the_released_generators_negative_prompt_is_a_further_change() -> None:
    pipe, made = tiny.sd1(), []
    for more in ({}, {"as_negative": True}):
        with SAFREEGuidance(concepts=("cat",), **more).applied_to(pipe):
            made.append(latents(pipe, ["a cat"]))
    assert not torch.equal(*made)
