"""What a denoiser should say, and the distance to it."""

import torch
from diffusers import DDPMScheduler

from erasure.losses.preservation import denoising_target, prior_preservation


def test_targets_are_those_of_diffusers_training() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=generator)
    timestep = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alpha = scheduler.alphas_cumprod[timestep][:, None, None, None]
    torch.testing.assert_close(denoising_target(clean, noise, alpha, "epsilon"), noise)
    torch.testing.assert_close(
        denoising_target(clean, noise, alpha, "v_prediction"), scheduler.get_velocity(clean, noise, timestep)
    )


def test_prior_preservation_of_known_differences() -> None:
    one = torch.zeros(2, 1, 2, 2)
    assert prior_preservation(one, one).item() == 0
    assert prior_preservation(one + 3, one).item() == 9
