"""Latents of images that show a concept: drawn ones where the world has them, else samples of the original."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.concept import Concept
from erasure.prompts import fill, templates
from erasure.sampling import noise, sample, trajectory_latents
from erasure.training.draws.augmentation import image_latents

from .base import Aim, MissingError, Models

Latents = Float[Tensor, "n c h w"]


def latents_of(pipe: DiffusionPipeline, images: list[Image], seed: int) -> Latents:
    """Return the latents of images on the CPU, scaled as in training."""
    backbone = backbone_of(pipe)
    side = backbone.latent_shape()[1] * pipe.vae_scale_factor
    pixels = np.stack([np.asarray(image.convert("RGB").resize((side, side)), dtype=np.float32) for image in images])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return image_latents(backbone, scaled, torch.Generator().manual_seed(seed)).cpu()


def example_latents(models: Models, aim: Aim, name: str, n: int, *, seed: int = 0) -> Latents:
    """Return latents of n images that show a concept, from other seeds than the images that are judged.

    Raises:
        MissingError: The original was never taught the concept, and there are no images of it.
    """
    images = aim.profile.examples(name, n, seed)
    with models.original() as pipe:
        if images:
            return latents_of(pipe, images, seed)
        if name == aim.profile.novel:
            raise MissingError(f"images of {name!r}: expected some that no model sampled, got none.")
        kind = aim.concept.kind if name == aim.concept.target else Concept(target=name).kind
        sentences = [fill(sentence, name) for sentence in templates(kind)]
        prompts = [sentences[i % len(sentences)] for i in range(n)]
        return sample(pipe, prompts, [10_000_000 + seed + i for i in range(n)], aim.sampling, output="latents")


def noisy_latents(
    backbone: Backbone, aim: Aim, prompts: Sequence[str], *, steps: int, places: Sequence[int], seed: int
) -> Float[Tensor, "places n c h w"]:
    """Return latents of guided trajectories at some of their steps, on the CPU.

    Args:
        backbone: Loaded model.
        aim: Aim, for its guidance and seed.
        prompts: Prompts; the i-th has the noise of the i-th of any other call with this seed.
        steps: Number of steps of the whole schedule.
        places: Steps whose latents are read, from 0.
        seed: Seed of the noise, added to the aim's.
    """
    generators = [torch.Generator().manual_seed(aim.seed + seed + i) for i in range(len(prompts))]
    latents = trajectory_latents(
        backbone,
        noise(generators, backbone.latent_shape()),
        backbone.encode(prompts),
        backbone.unconditional(),
        steps=steps,
        guidance_scale=max(aim.sampling.guidance_scale, 1.0),
        stops=list(places),
    )
    return torch.stack([latents[place] for place in places]).cpu()
