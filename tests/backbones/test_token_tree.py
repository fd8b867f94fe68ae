"""Prompts read as a tree of tokens."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import POOLED, TEXT, EncodedTokens
from erasure.backbones.picked import PickedStates, PickedTexts, Place
from erasure.backbones.token_tree import TokenTree
from tests import tiny

PROMPTS = (
    "",
    "a photo",
    "a photo of a cat",
    "a photo of a catfish, very far away and behind a lot of other things",
    "in the style of Van Gogh",
    "a photo of a cat",
)


def every_place(texts: tuple[str, ...], tokens: EncodedTokens) -> Iterable[Place]:
    """Return the places up to a few behind the end of text, a different number in each prompt."""
    return {(i, p) for i in range(len(texts)) for p in range(min(int(tokens.ends[i]) + 1 + 7 * i, tokens.ids.shape[1]))}


def picked(pipe: Any, prompts: tuple[str, ...] = PROMPTS) -> PickedTexts:
    return backbone_of(pipe).pick(prompts, every_place)


def states_of(texts: PickedTexts) -> PickedStates:
    [(_, states)] = texts.parts[TEXT]
    return states


@pytest.mark.parametrize("make", [tiny.sd1, tiny.sd2, tiny.sdxl])
def test_states_are_those_of_whole_prompts_to_the_last_bit(make: Any) -> None:
    pipe = make()
    texts, whole = picked(pipe), backbone_of(pipe).read(PROMPTS)
    states = states_of(texts)
    assert len(states.number) > 100
    assert all(torch.equal(states[row, at], whole.states[row, at]) for row, at in states.number)
    assert texts.prompts == whole.prompts
    assert texts.vectors.keys() == whole.streams.keys() - {"text"}
    if whole.pooled is not None:
        assert torch.equal(texts.vectors[POOLED], whole.pooled)


def test_a_state_is_the_same_whatever_is_read_beside_it() -> None:
    pipe = tiny.sd1()
    alone, beside = states_of(picked(pipe, PROMPTS[2:3])), states_of(picked(pipe))
    assert all(torch.equal(alone[0, at], beside[2, at]) for _, at in alone.number)


def test_a_beginning_that_prompts_share_is_read_once() -> None:
    tree = TokenTree.of([[1, 2, 3], [1, 2, 4, 5], [1, 2], [6]], longest=77)
    assert tree.tokens == (1, 2, 3, 4, 5, 6)
    assert tree.positions == (0, 1, 2, 2, 3, 0)
    assert tree.branches == ((0, 1, 2), (0, 1, 3, 4), (0, 1), (5,))


def test_the_encoder_reads_no_token_twice_and_attends_as_before_afterwards() -> None:
    pipe = tiny.sd1()
    encoder, read = pipe.text_encoder, []
    with encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel())):
        picked(pipe)
        assert sum(read) < backbone_of(pipe).read(PROMPTS).ids.numel()
    assert encoder.config._attn_implementation == "sdpa"


def test_a_model_with_other_attention_or_a_mask_is_read_whole() -> None:
    eager, masked = tiny.sd1(), tiny.sd1()
    eager.text_encoder.set_attn_implementation("eager")
    masked.text_encoder.config.use_attention_mask = True
    for pipe in (eager, masked):
        assert backbone_of(pipe).picked_at_once is not None
        states, whole = states_of(picked(pipe)), backbone_of(pipe).read(PROMPTS).states
        assert all(torch.equal(states[row, at], whole[row, at]) for row, at in states.number)
