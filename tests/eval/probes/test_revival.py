"""The revival probe: the concept's name in the prompt, and its attention in the middle of the image."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.eval.attacks.base import Goal, Tokens
from erasure.eval.probes.revival import Revival, name_positions
from erasure.guidance.a_star import AStarLoss
from erasure.guidance.attention import GuidedStep
from erasure.guidance.map_reading import Named
from erasure.sampling import SamplingSettings, sample
from tests.tiny import sd1

CAT = Concept(target="cat", aliases=("kitten",))


def test_the_revival_probe_asks_by_name_and_finds_the_names_tokens() -> None:
    small, probe = backbone_of(sd1()), Revival()
    tokens, goal = Tokens(small), Goal(concept=CAT, prompt="a photo of a cat", seed=0)
    (row,) = probe.prompt_ids(small, goal).tolist()
    assert row == small.encode(["a photo of a cat"]).ids[0].tolist()
    assert [row[position] for position in name_positions(row, CAT, tokens)] == tokens.of("cat")
    assert not name_positions(small.encode(["a dog"]).ids[0].tolist(), CAT, tokens)
    implicit = Goal(concept=CAT, prompt="it purrs", seed=0)
    (named,) = probe.prompt_ids(small, implicit).tolist()
    assert name_positions(named, CAT, tokens)


@pytest.mark.parametrize("method", ["a-star", "attend-and-excite"])
def test_the_revival_probe_pulls_the_concepts_attention_and_leaves_nothing_behind(method: Any) -> None:
    # A trained model's peaks are at 1 from the start, where Attend-and-Excite's loss is flat.
    pipe, probe = tinyworld.load() if method == "a-star" else sd1(), Revival(method=method, alpha=20.0)
    states = backbone_of(pipe).encode(["a cat"])
    aim = Goal(concept=CAT, prompt="a cat", seed=0)

    def lost(probe: Revival | None) -> float:
        """Return how far the concept is from the middle, or its peak from 1, over the steps of four pictures."""
        steps: list[GuidedStep] = []
        mask = torch.zeros(8, 8)
        mask[2:6, 2:6] = 1
        end = int(states.eot[0])
        row = Named(names=("cat",), positions=[states.word_positions(0, "cat")], end=end, layout={0: mask})
        watch = AStarLoss(alpha=1e-12, segregation_scale=0.0)
        with (
            nullcontext() if probe is None else probe.applied_to(pipe, aim),
            watch.guiding(pipe, lambda: [row] * 4, on_guided=steps.append),
        ):
            sample(
                pipe, states.select([0] * 4), range(4), SamplingSettings(steps=5, guidance_scale=4.0), output="latents"
            )
        if method == "a-star":
            return sum(sum(step.terms["retention"]) for step in steps)
        return sum(1 - float(maps.max()) for step in steps for maps in step.maps)

    before = sample(pipe, states, [0], SamplingSettings(steps=3, guidance_scale=4.0), output="latents")
    assert lost(probe) < lost(None)
    assert torch.equal(
        sample(pipe, states, [0], SamplingSettings(steps=3, guidance_scale=4.0), output="latents"), before
    )
