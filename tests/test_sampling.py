"""Sampling: the same picture whatever the batch, and a pipeline that is left alone."""

import copy
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.sampling import (
    SamplingSettings,
    grid,
    half_noised,
    noise,
    sample,
    sample_part,
    scheduled_prediction,
    trajectory_latents,
)
from tests import tiny, tiny_families
from tests.tiny import FAMILIES

PROMPTS = ["a cat", "a dog", "a cat", "a house on the beach", ""]
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(params=sorted(FAMILIES))
def pipe(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def raw(pipe: Any, prompt: str, seed: int, **settings: Any) -> Any:
    """One picture by the pipeline alone, from the noise that `sample` uses."""
    latents = noise([torch.Generator().manual_seed(seed)], backbone_of(pipe).latent_shape())
    return copy.deepcopy(pipe)(prompt, latents=latents, num_inference_steps=3, **settings)


def test_pictures_are_those_of_the_pipeline(pipe: Any) -> None:
    ours = sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0, batch_size=1), output="latents")
    for row, prompt, seed in zip(ours, PROMPTS, SEEDS, strict=True):
        theirs = raw(pipe, prompt, seed, guidance_scale=4.0, output_type="latent").images[0]
        torch.testing.assert_close(row, theirs, rtol=1e-4, atol=1e-4)


def test_negative_prompt_and_no_guidance_reach_the_pipeline(pipe: Any) -> None:
    ours = sample(
        pipe, ["a cat"], [7], SamplingSettings(steps=3, guidance_scale=4.0, negative_prompt="a dog"), output="latents"
    )
    theirs = raw(pipe, "a cat", 7, guidance_scale=4.0, negative_prompt="a dog", output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours = sample(pipe, ["a cat"], [7], SamplingSettings(steps=3, guidance_scale=1.0), output="latents")
    theirs = raw(pipe, "a cat", 7, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_batches_do_not_matter_and_repeats_are_equal(pipe: Any) -> None:
    whole = sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0), output="latents")
    single = sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0, batch_size=2), output="latents")
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)
    assert torch.equal(
        whole, sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0), output="latents")
    )


@pytest.mark.parametrize("scheduler", [EulerAncestralDiscreteScheduler, DDPMScheduler])
def test_samplers_that_add_noise_do_not_depend_on_the_batch(scheduler: Any) -> None:
    pipe = FAMILIES["sd1"]()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    whole = sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0), output="latents")
    parts = sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0, batch_size=2), output="latents")
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


def test_noise_of_a_picture_is_its_seed_alone() -> None:
    def drawn(seeds: list[int]) -> torch.Tensor:
        return noise([torch.Generator().manual_seed(seed) for seed in seeds], (4, 8, 8))

    assert torch.equal(drawn([0, 1, 2])[1:2], drawn([1]))
    assert not torch.equal(drawn([0]), drawn([1]))


def test_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    pipe.scheduler.set_timesteps(7)
    pipe.set_progress_bar_config(disable=False)
    before, scheduler = dict(vars(pipe)), copy.deepcopy(vars(pipe.scheduler))
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    state = torch.random.get_rng_state()
    sample(pipe, PROMPTS, SEEDS, SamplingSettings(steps=3, guidance_scale=4.0))
    assert vars(pipe) == before
    assert vars(pipe.scheduler).keys() == scheduler.keys()
    for name, value in scheduler.items():
        torch.testing.assert_close(vars(pipe.scheduler)[name], value) if isinstance(value, torch.Tensor) else None
    assert pipe.scheduler.num_inference_steps == 7
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_outputs_show_the_same_pictures(pipe: Any) -> None:
    pictures = sample(pipe, PROMPTS[:2], SEEDS[:2], SamplingSettings(steps=2, guidance_scale=4.0))
    array = sample(pipe, PROMPTS[:2], SEEDS[:2], SamplingSettings(steps=2, guidance_scale=4.0), output="uint8")
    assert array.shape == (2, 16, 16, 3)
    assert array.dtype == np.uint8
    assert all(np.array_equal(np.asarray(picture), row) for picture, row in zip(pictures, array, strict=True))
    assert np.ptp(array) > 0


def test_a_size_may_be_asked_for(pipe: Any) -> None:
    assert sample(
        pipe, ["a cat"], [0], SamplingSettings(steps=2, guidance_scale=4.0, height=32, width=16), output="uint8"
    ).shape == (1, 32, 16, 3)


def test_nothing_asked_for_is_nothing(pipe: Any) -> None:
    assert sample(pipe, [], []) == []
    assert sample(pipe, [], [], output="uint8").shape == (0, 16, 16, 3)
    assert sample(pipe, [], [], output="latents").shape == (0, 4, 8, 8)


def test_each_distinct_prompt_is_encoded_once(pipe: Any) -> None:
    rows = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    sample(pipe, PROMPTS * 3, SEEDS * 3, SamplingSettings(steps=2, guidance_scale=4.0, batch_size=4))
    handle.remove()
    assert sum(rows) == len(set(PROMPTS)) + 1  # and the unconditional one


def test_progress_counts_pictures(pipe: Any) -> None:
    seen = []
    sample(
        pipe,
        PROMPTS,
        SEEDS,
        SamplingSettings(steps=1, guidance_scale=4.0, batch_size=2),
        on_progress=lambda step: seen.append((step.done, step.total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_grid_pairs_every_prompt_with_every_seed() -> None:
    assert grid(["a", "b"], [0, 1]) == (["a", "a", "b", "b"], [0, 1, 0, 1])


def test_wrong_input_is_named() -> None:
    pipe = FAMILIES["sd1"]()
    with pytest.raises(InputError, match="one seed for each of 2 prompts, got 1"):
        sample(pipe, ["a", "b"], [0])
    with pytest.raises(InputError, match="expected a list of texts or Conditioning, got 'a cat'"):
        sample(pipe, "a cat", [0])
    with pytest.raises(InputError, match=r"sampling\.steps: expected a number greater than or equal to 1, got 0"):
        sample(pipe, ["a"], [0], SamplingSettings(steps=0, guidance_scale=4.0))


@pytest.mark.parametrize("family", ["sd1", "sd2"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_ddim_latents_are_those_of_the_scheduler(family: str, guidance_scale: float) -> None:
    pipe = FAMILIES[family]()
    backbone = backbone_of(pipe)
    start = noise([torch.Generator().manual_seed(0)], backbone.latent_shape())
    seen = [start]
    copy.deepcopy(pipe)(
        "a cat",
        latents=start,
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, kwargs: seen.append(kwargs["latents"]) or {},
    )
    ours = trajectory_latents(
        backbone,
        start,
        backbone.encode(["a cat"]),
        backbone.unconditional(),
        steps=5,
        guidance_scale=guidance_scale,
        stops=[0, 2, 4],
    )
    assert list(ours) == [0, 2, 4]
    for place, latents in ours.items():
        torch.testing.assert_close(latents, seen[place], rtol=1e-4, atol=1e-4)


def test_ddim_latents_take_their_schedule_from_training_not_from_the_sampler() -> None:
    pipe = FAMILIES["sdxl"]()  # its sampler is Euler's, which scales latents otherwise
    found = []
    for scheduler in (pipe.scheduler, DDIMScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        backbone = backbone_of(pipe)
        start = noise([torch.Generator().manual_seed(0)], backbone.latent_shape())
        texts = backbone.encode(["a cat"]), backbone.unconditional()
        found.append(trajectory_latents(backbone, start, *texts, steps=4, guidance_scale=3.0, stops=[3])[3])
    torch.testing.assert_close(*found)


def test_predicted_noise_is_float32_and_follows_the_prediction_type() -> None:
    backbone = backbone_of(FAMILIES["sd2"]())
    latents = torch.randn(1, 4, 8, 8)
    timestep = torch.tensor(500)
    states = backbone.encode(["a cat"])
    alpha = backbone.pipe.scheduler.alphas_cumprod[500]
    with torch.no_grad():
        v = backbone.predict(latents, timestep, states)
        epsilon = scheduled_prediction(backbone, latents, timestep, states)
    torch.testing.assert_close(epsilon, alpha.sqrt() * v + (1 - alpha).sqrt() * latents)
    backbone.denoiser.to(torch.bfloat16)
    assert scheduled_prediction(backbone, latents, timestep, states).dtype == torch.float32


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_model_that_is_not_square_makes_images_of_its_size(family: str) -> None:
    pipe = FAMILIES[family]()
    pipe.unet.register_to_config(sample_size=[16, 24])
    assert sample(pipe, ["a cat"], [0], SamplingSettings(steps=2))[0].size == (48, 32)


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (diffusers.DDIMScheduler, 2000, "steps: expected 1 to 1000 for the model's DDIMScheduler, got 2000"),
        (diffusers.DDIMScheduler, 1000, "steps: expected a number that the model's DDIMScheduler takes, got 1000"),
        (diffusers.LCMScheduler, 60, "steps: expected a number that the model's LCMScheduler takes, got 60"),
        (diffusers.PNDMScheduler, 2, "steps: expected a number that the model's PNDMScheduler takes, got 2"),
        (diffusers.DPMSolverMultistepScheduler, 1000, "DPMSolverMultistepScheduler stays finite, got 1000"),
        (diffusers.IPNDMScheduler, 5, "expected one of discrete timesteps, got IPNDMScheduler|got None of IPNDM"),
    ],
)
def test_a_scheduler_that_does_not_take_the_steps_is_one_line(scheduler: Any, steps: int, message: str) -> None:
    pipe = FAMILIES["sd1"]()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    state = torch.random.get_rng_state()
    with pytest.raises(InputError, match=message) as raised:
        sample(pipe, ["a cat"], [0], SamplingSettings(steps=steps))
    assert "\n" not in str(raised.value)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_pipeline_of_another_task_is_one_line() -> None:
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**FAMILIES["sd1"]().components, requires_safety_checker=False)
    with pytest.raises(InputError, match="images of texts alone, got StableDiffusionImg2ImgPipeline"):
        sample(pipe, ["a cat"], [0])


@pytest.mark.parametrize("output", ["uint8", "latents"])
def test_images_that_are_not_finite_are_none(output: Any) -> None:
    pipe = FAMILIES["sd1"]()
    pipe.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="expected finite images, got nan of 'a cat' as float32"):
        sample(pipe, ["a cat"], [0], SamplingSettings(steps=1), output=output)


@pytest.mark.parametrize("family", ["flux", "z-image"])
def test_parts_of_a_shifted_schedule_make_the_whole(family: str) -> None:
    pipe = tiny_families.built(family) if family in tiny_families.BUILDERS else tiny.EVERY[family]()
    settings = SamplingSettings(steps=3, guidance_scale=2.0)
    whole = sample(pipe, ["a cat"], [0], settings, output="latents")
    states = backbone_of(pipe).encode(["a cat"])
    begun = sample_part(pipe, states, None, [0], settings, last=2, output="latents")
    assert isinstance(begun, torch.Tensor)
    ended = sample_part(pipe, states, begun, [0], settings, first=2, output="latents")
    assert isinstance(ended, torch.Tensor)
    assert torch.equal(ended, whole)
    noisy = half_noised(pipe, whole, [1], settings.steps, 1)
    level = backbone_of(pipe).schedule.timesteps(settings.steps)[1] / 1000
    drawn = noise([torch.Generator().manual_seed(1)], (4, 8, 8))
    torch.testing.assert_close(noisy, (1 - level) * whole + level * drawn)
