"""HiRM: the loss, the one block that changes, what stays."""

from typing import Any

import pytest
import torch

from erasure.backbones import backbone_of
from erasure.backbones.pixart import PixArt
from erasure.backbones.sd import StableDiffusion
from erasure.backbones.text_blocks import clip_encoders, first_block, last_block, token_ids
from erasure.concept import Concept
from erasure.erasers.hirm import HiRM
from erasure.progress import Progress
from erasure.training.context import FitContext
from tests import tiny

BACKBONE: Any = backbone_of(tiny.sd1(vocabulary="clip"))
CAT = Concept(target="cat", anchor="boat")


def test_loss_and_gradient_are_those_of_the_golden_example() -> None:
    states = torch.tensor([[[1.0, 0, 2], [0, 1, 0]]], requires_grad=True)
    goal = torch.tensor([[[0.0, 1, 0], [1, 0, 0]]])
    loss = HiRM(positions="all", scale=2.0).distance(states, goal)
    assert loss.item() == 7.0
    (gradient,) = torch.autograd.grad(loss, states)
    torch.testing.assert_close(gradient, torch.tensor([[[1.0, -2, 2], [-2, 1, 0]]]))


def test_the_start_of_text_is_left_out() -> None:
    states = torch.tensor([[[9.0, 9, 9], [0, 1, 0]]])
    assert HiRM(scale=1.0).distance(states, torch.zeros(1, 2, 3)).item() == 1.0


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
def test_only_the_first_block_of_the_clip_encoders_changes(family: str) -> None:
    backbone: Any = backbone_of(tiny.EVERY[family]())
    edit = HiRM(steps=1, lr=1e-3).fit([CAT], FitContext(backbone=backbone))
    blocks = {name for encoder in clip_encoders(backbone) for name in first_block(backbone, encoder)}
    assert edit.changes.keys() == blocks
    assert not any(name.startswith(("unet", "transformer")) for name in blocks)
    assert len({name.partition(".")[0] for name in blocks}) == len(clip_encoders(backbone))


def test_no_steps_change_nothing() -> None:
    edit = HiRM(steps=0).fit([CAT], FitContext(backbone=BACKBONE))
    for name, parameter in BACKBONE.parameters(edit.changes.__contains__).items():
        assert torch.equal(edit.edited(name, parameter.detach()), parameter.detach())


@pytest.mark.parametrize("goal", ["anchor", "random"])
def test_the_states_of_the_name_come_nearer_to_their_goal(goal: Any) -> None:
    steps: list[Progress] = []
    HiRM(goal=goal, scale=1.0, steps=12, lr=2e-3).fit([CAT], FitContext(backbone=BACKBONE, on_progress=steps.append))
    losses = [step.loss for step in steps]
    assert losses[-1] is not None
    assert losses[0] is not None
    assert losses[-1] < 0.9 * losses[0]


def test_a_name_that_is_where_it_should_be_has_no_loss() -> None:
    encoder = clip_encoders(BACKBONE)["text_encoder"]
    states = last_block(encoder, token_ids(BACKBONE, "text_encoder", ["boat"]))
    assert HiRM().distance(states, states.detach()).item() == 0.0


def test_the_random_goal_has_its_published_scale_and_steps() -> None:
    assert (HiRM(goal="random").scale, HiRM(goal="random").steps) == (500.0, 25)
    assert (HiRM().scale, HiRM().steps) == (1.0, 15)


def test_templates_are_more_prompts() -> None:
    bare, many = HiRM()._pairs([CAT]), HiRM(prompts="templates")._pairs([CAT])
    assert bare == [("cat", "boat")]
    assert ("a photo of a cat", "a photo of a boat") in many


def test_families_without_a_clip_encoder_are_not_covered() -> None:
    assert HiRM.covers(StableDiffusion)
    assert not HiRM.covers(PixArt)
