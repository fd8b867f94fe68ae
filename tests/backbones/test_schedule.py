"""Noise schedules: the forms of a prediction agree, and a deterministic sampler follows the scheduler of diffusers."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from erasure.backbones.schedule import Discrete, Flow, NoiseSchedule, Timestep
from erasure.errors import InputError

CLEAN = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def shifted(steps: int) -> Tensor:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas[:-1]


SCHEDULES = {
    "epsilon": Discrete(alphas_cumprod=DDIM.alphas_cumprod, prediction_type="epsilon"),
    "v": Discrete(alphas_cumprod=DDIM.alphas_cumprod, prediction_type="v_prediction"),
    "flow": Flow(sigmas=shifted),
}


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return SCHEDULES[request.param]


def some(schedule: NoiseSchedule) -> Timestep:
    return schedule.drawn(3, torch.Generator().manual_seed(2))


def test_the_output_of_training_stands_for_the_noise_and_the_clean_latents(schedule: NoiseSchedule) -> None:
    timestep = some(schedule)
    noisy, output = schedule.noised(CLEAN, NOISE, timestep), schedule.target(CLEAN, NOISE, timestep)
    torch.testing.assert_close(schedule.noise_of(output, noisy, timestep), NOISE, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(schedule.clean_of(output, noisy, timestep), CLEAN, rtol=1e-3, atol=1e-3)


def test_a_perfect_denoiser_steps_along_the_path_of_its_noise(schedule: NoiseSchedule) -> None:
    timesteps = schedule.timesteps(10)
    assert (timesteps.diff() < 0).all()
    latents = schedule.noised(CLEAN, NOISE, timesteps[0])
    for now, following in itertools.pairwise(timesteps):
        output = schedule.target(CLEAN, NOISE, now)
        latents = schedule.step(schedule.prediction(output, latents, now), latents, now, following)
        torch.testing.assert_close(latents, schedule.noised(CLEAN, NOISE, following), rtol=1e-3, atol=1e-3)


def test_targets_are_those_of_training_with_diffusers() -> None:
    timestep = torch.tensor([0, 500, 999])
    assert torch.equal(SCHEDULES["epsilon"].target(CLEAN, NOISE, timestep), NOISE)
    velocity = DDPMScheduler(**STABLE_DIFFUSION).get_velocity(CLEAN, NOISE, timestep)
    torch.testing.assert_close(SCHEDULES["v"].target(CLEAN, NOISE, timestep), velocity)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_steps_are_those_of_ddim(kind: str) -> None:
    schedule = SCHEDULES[kind]
    reference = DDIMScheduler.from_config(DDIM.config, prediction_type=schedule.prediction_type)  # type: ignore[attr-defined]
    reference.set_timesteps(10)
    assert torch.equal(schedule.timesteps(10), reference.timesteps)
    now, following = reference.timesteps[3], reference.timesteps[4]
    expected = reference.step(NOISE, now, CLEAN).prev_sample
    found = schedule.step(schedule.prediction(NOISE, CLEAN, now), CLEAN, now, following)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_flow_steps_are_those_of_the_euler_scheduler() -> None:
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(10)
    schedule = SCHEDULES["flow"]
    torch.testing.assert_close(schedule.timesteps(10), reference.timesteps)
    now, following = reference.timesteps[0], reference.timesteps[1]
    expected = reference.step(NOISE, now, CLEAN).prev_sample
    torch.testing.assert_close(schedule.step(NOISE, CLEAN, now, following), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1000])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="steps: expected 1 to 999"):
        SCHEDULES["epsilon"].timesteps(steps)
