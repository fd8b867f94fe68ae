"""Log likelihoods of images under prompts, from the denoising errors of a model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.schedule import NoiseSchedule, Timestep

_AT_ONCE = 32
_LEAST = 1e-4  # of signal and noise: flow matching begins without any signal


def log_snr(schedule: NoiseSchedule, timesteps: Timestep) -> Float[Tensor, " n"]:
    """Return the logarithm of the signal-to-noise ratio at timesteps."""
    one = torch.ones(len(timesteps), 1, 1, 1)
    signal, added = (
        schedule.noised(*pair, timesteps).flatten().double().clamp_min(_LEAST)
        for pair in ((one, torch.zeros_like(one)), (torch.zeros_like(one), one))
    )
    return 2 * (signal / added).log()


@torch.no_grad()
def log_evidence(
    backbone: Backbone,
    clean: Float[Tensor, "n c h w"],
    prompts: Conditioning,
    rows: Int[Tensor, "n k"],
    timesteps: Timestep,
    generator: torch.Generator,
) -> Float[Tensor, "n k levels"]:
    """Return the log likelihood of noisy images under prompts, up to a constant of each image, at each noise level.

    From the noisiest level on,

        log p(x_t | y) = -1/2 sum_(s >= t) (lambda_s - lambda_(s-1)) |eps(x_s, y) - eps|^2,   lambda = log SNR,

    with the same noise for all prompts: the variational bound of a diffusion model (arXiv:2107.00630, eq. 12), with one
    draw of the noise a level, summed up to the level.

    Args:
        backbone: Model.
        clean: Images as clean latents.
        prompts: Encoded prompts.
        rows: Rows of the prompts that each image is read with.
        timesteps: Timesteps, the noisiest first.
        generator: Generator of the noise.
    """
    schedule = backbone.schedule
    first = schedule.timesteps(min(1000, schedule.total - 1))[:1]
    increments = log_snr(schedule, torch.cat([first.to(timesteps), timesteps])).diff().clamp_min(0)
    errors = torch.empty(*rows.shape, len(timesteps), dtype=torch.float64)
    for level, timestep in enumerate(timesteps):
        added = torch.randn(clean.shape, generator=generator).to(clean)
        noisy = schedule.noised(clean, added, timestep.to(clean.device))
        pairs = [(i, j) for i in range(len(rows)) for j in range(rows.shape[1])]
        for start in range(0, len(pairs), _AT_ONCE):
            some = pairs[start : start + _AT_ONCE]
            images = [i for i, _ in some]
            read = prompts.select([int(rows[i, j]) for i, j in some])
            output = backbone.predict(noisy[images], timestep.to(clean.device), read).float()
            error = schedule.noise_of(output, noisy[images], timestep.to(clean.device)) - added[images]
            errors[images, [j for _, j in some], level] = error.double().square().flatten(1).sum(1).cpu()
    return (-0.5 * increments * errors).cumsum(-1).float()
