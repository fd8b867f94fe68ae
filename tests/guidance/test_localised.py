"""Localised removal: inside the concept's region the picture without it, outside the picture as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from erasure.errors import InputError
from erasure.guidance.leak import LeakLoss
from erasure.guidance.localised import LocalisedRemoval
from erasure.guidance.map_reading import Named
from erasure.sampling import SamplingSettings, sample
from tests import tiny

PROMPT = "a photo of a cat and a dog"


def latents(pipe: Any, prompts: list[str], **kwargs: Any) -> Tensor:
    return sample(
        pipe,
        prompts,
        range(len(prompts)),
        SamplingSettings(**{"steps": 4, "guidance_scale": 4.0, **kwargs}),
        output="latents",
    )


def with_masks(pipe: Any, prompts: list[str], **settings: Any) -> tuple[Tensor, list[Tensor]]:
    masks: list[Tensor] = []
    # Random weights have flat maps, which are at least half their maximum everywhere.
    settings = {"region": "otsu", "grow": 0, "on_masks": lambda _, mask: masks.append(mask), **settings}
    removal = LocalisedRemoval(concepts=("cat",), **settings)
    with removal.applied_to(pipe):
        return latents(pipe, prompts), masks


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("scheduler", [None, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler])
def test_outside_of_the_region_the_picture_stays_what_it_was(family: str, scheduler: Any) -> None:
    pipe = tiny.FAMILIES[family]()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    before = latents(pipe, [PROMPT])
    after, masks = with_masks(pipe, [PROMPT], preserve=("dog",))
    inside = masks[-1][:, None].expand_as(before)
    assert 0 < inside.float().mean() < 1
    torch.testing.assert_close(after[~inside], before[~inside], rtol=1e-3, atol=1e-3)
    assert (after - before)[inside].abs().mean() > 100 * (after - before)[~inside].abs().mean()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_outside_of_the_region_no_pixel_changes(family: str) -> None:
    pipe = tiny.FAMILIES[family]()
    (before,) = sample(pipe, [PROMPT], [0], SamplingSettings(steps=4, guidance_scale=4.0), output="uint8")
    masks: list[Tensor] = []
    removal = LocalisedRemoval(concepts=("cat",), region="otsu", grow=0, on_masks=lambda _, mask: masks.append(mask))
    with removal.applied_to(pipe):
        (after,) = sample(pipe, [PROMPT], [0], SamplingSettings(steps=4, guidance_scale=4.0), output="uint8")
    outside = ~masks[-1][0].numpy().repeat(2, 0).repeat(2, 1)
    assert abs(after[outside].astype(int) - before[outside]).max() <= 1  # rounding of the combined predictions
    assert abs(after[~outside].astype(int) - before[~outside]).max() > 1
    assert "decode" not in vars(pipe.vae)


def test_the_region_is_the_concepts_grown_less_its_neighbours() -> None:
    removal = LocalisedRemoval(concepts=("cat",), preserve=("dog",), smooth=False, normalise="raw", grow=0)
    attention = torch.zeros(1, 10, 4, 4)
    attention[0, 2, :, :3] = 1  # the cat
    attention[0, 5, :, 2:] = 1  # the dog
    named = [Named(names=("cat", "dog"), positions=[[2], [5]], end=7)]
    mask = removal.masks(attention, named, (8, 8))
    assert mask.shape == (1, 1, 8, 8)
    assert mask[0, 0, :, :4].all()
    assert not mask[0, 0, :, 4:].any()
    attention[0, 2, :, 1:] = 0  # the cat is a strip at the left
    grown = replace(removal, grow=1).masks(attention, named, (4, 4))[0, 0]
    assert grown[:, :2].all()
    assert not grown[:, 2:].any()
    alone = [Named(names=("cat",), positions=[[5]], end=7)]
    assert removal.masks(attention, alone, (4, 4))[0, 0].sum() == 8


def test_prompts_that_do_not_name_it_are_left_alone_bit_for_bit() -> None:
    pipe = tiny.sd1()
    before = latents(pipe, [PROMPT, "a dog"])
    with LocalisedRemoval(concepts=("cat",), preserve=("dog",), region="otsu").applied_to(pipe):
        both = latents(pipe, [PROMPT, "a dog"])
        alone = latents(pipe, ["a dog"])
    assert torch.equal(alone, latents(pipe, ["a dog"]))
    assert torch.equal(both[1], before[1])
    assert not torch.equal(both[0], before[0])
    assert torch.equal(latents(pipe, [PROMPT, "a dog"]), before)


def test_a_region_that_is_everything_gives_the_picture_of_the_prompt_without_it() -> None:
    pipe = tiny.sd1()
    with LocalisedRemoval(concepts=("cat",), region_threshold=1e-6, smooth=False).applied_to(pipe):
        found = latents(pipe, [PROMPT])
    torch.testing.assert_close(found, latents(pipe, ["a photo of a dog"]), rtol=1e-3, atol=1e-3)


def test_an_anchor_takes_the_concepts_place() -> None:
    removal = LocalisedRemoval(concepts=("cat", "tabby cat"), anchor="tree")
    assert removal.replaced_in("a tabby  cat, a Cat and a dog") == "a tree, a tree and a dog"
    pipe = tiny.sd1()
    with LocalisedRemoval(concepts=("cat",), anchor="cat", outside="free").applied_to(pipe):
        same = latents(pipe, [PROMPT])
    torch.testing.assert_close(same, latents(pipe, [PROMPT]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_the_force_is_the_specified_one(guidance_scale: float) -> None:
    """eps_c - scale M (eps_e - eps_u), seen from what one step does to the latents."""
    pipe = tiny.sd1()
    moved = []
    for scale in (1.0, 2.0):
        removal = LocalisedRemoval(concepts=("cat",), anchor=None, scale=scale, outside="free", region_threshold=1e-6)
        with removal.applied_to(pipe):
            one = sample(
                pipe, [PROMPT], [0], SamplingSettings(steps=1, guidance_scale=guidance_scale), output="latents"
            )
        moved.append(
            one
            - sample(pipe, [PROMPT], [0], SamplingSettings(steps=1, guidance_scale=guidance_scale), output="latents")
        )
    torch.testing.assert_close(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-3)
    assert moved[0].abs().max() > 0


def test_only_the_chosen_part_of_the_schedule_acts() -> None:
    pipe, steps = tiny.sd1(), []
    removal = LocalisedRemoval(concepts=("cat",), steps_range=(0.5, 1.0), on_masks=lambda step, _: steps.append(step))
    with removal.applied_to(pipe):
        latents(pipe, [PROMPT])
    assert steps == [2, 3]


def test_the_leak_moves_only_where_a_neighbour_is_named_and_keeps_the_rest() -> None:
    pipe = tiny.sd1()
    before = latents(pipe, [PROMPT])
    after, masks = with_masks(pipe, [PROMPT], preserve=("dog",), leak_alpha=50.0)
    plain, _ = with_masks(pipe, [PROMPT], preserve=("dog",))
    outside = ~masks[-1][:, None].expand_as(before)
    assert not torch.equal(after, plain)
    torch.testing.assert_close(after[outside], before[outside], rtol=1e-3, atol=1e-3)
    loss = LeakLoss(erased=("cat",))
    maps = torch.rand(2, 4, 4, requires_grad=True)
    named = Named(names=("cat", "dog"), positions=[[1], [2]], end=3)
    (gradient,) = torch.autograd.grad(loss.terms(maps, {}, named)["leak"], maps)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "scale: expected a number of at least 0, got -1.0"),
        ({"anchor": None}, "anchor: expected words, got None. Note that without one only a scale above 0 acts"),
        ({"preserve": ("cat",)}, "preserve: expected neighbours that stay, got .*cat is also to go"),
        ({"region_threshold": 2.0}, "region_threshold: expected a number in"),
        ({"grow": -1}, "grow: expected at least 0 pixels of the maps, got -1"),
        ({"steps_range": (-0.1, 1.0)}, "steps_range: expected two shares"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LocalisedRemoval(concepts=("cat",), **settings)
