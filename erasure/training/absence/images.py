"""Images of the objective `absent`: of a concept and of what stays, sampled by the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...io.tensor_cache import stored
from ...progress import Progress
from ...sampling import noise, trajectory_latents
from ..context import TrainingTask
from ..trajectories import encoded

_AT_ONCE = 16

Latents = Float[Tensor, "n c h w"]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Settings of the sampling of images to train on.

    Attributes:
        steps: Steps of the schedule, > 0.
        guidance_scale: Scale of classifier-free guidance, >= 1.
    """

    steps: int
    guidance_scale: float


def sampled_images(task: TrainingTask, prompts: Sequence[str], settings: ImageSettings, seed: int) -> Latents:
    """Return the reference's image of each prompt, as clean latents on the model's device.

    They are kept in the folder of the context's history, where one is.
    """
    with task.reference():
        backbone = task.backbone
        key = ["absent", backbone.fingerprint(), settings.steps, settings.guidance_scale, seed, list(prompts)]
        latents = stored(task.context.history.memory, key, lambda: _sampled(task, prompts, settings, seed))
    return latents["latents"].to(backbone.device)


@torch.no_grad()
def _sampled(task: TrainingTask, prompts: Sequence[str], settings: ImageSettings, seed: int) -> dict[str, Tensor]:
    backbone, last = task.backbone, settings.steps - 1
    timestep = backbone.schedule.timesteps(settings.steps)[last].to(backbone.device)
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    for start in range(0, len(prompts), _AT_ONCE):
        read = encoded(backbone, prompts[start : start + _AT_ONCE])
        latents = begun_images(backbone, read, settings, last, generator)
        output = backbone.predict(latents, timestep, read).float()
        images.append(backbone.schedule.clean_of(output, latents, timestep).cpu())
        if task.context.on_progress is not None:
            task.context.on_progress(Progress(done=start + len(read), total=len(prompts), stage="images"))
    return {"latents": torch.cat(images)}


def begun_images(
    backbone: Backbone, read: Conditioning, settings: ImageSettings, step: int, generator: torch.Generator
) -> Latents:
    """Return the model's latents on the way to an image of each prompt, at a step of the sampling."""
    return trajectory_latents(
        backbone,
        noise([generator] * len(read), backbone.latent_shape()),
        read,
        backbone.unconditional(),
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        stops=[step],
    )[step]
