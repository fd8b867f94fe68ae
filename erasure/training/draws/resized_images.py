"""Noised images in random sizes, as Concept Ablation trains on them (arXiv:2303.13516)."""

from collections.abc import Sequence
from typing import Any

import torch

from ...concept import Concept
from ...errors import InputError
from ..context import FitContext
from ..replay_memory import decoded
from ..trajectories import encoded
from .augmentation import image_latents, reads_images, squared, view_of
from .noised_images import NoisedImages, ShownImages


class ResizedImages(NoisedImages):
    """Images in random views, whose prompts say how large the image is: "a far away ..."; see `NoisedImages`.

    Raises:
        InputError: The model's autoencoder is of another kind than Stable Diffusion's.
    """

    def __init__(self, context: FitContext, concepts: Sequence[Concept], **settings: Any) -> None:
        if not reads_images(context.backbone):
            kind = type(context.backbone.pipe.vae).__name__
            raise InputError(f"resize: expected a model with AutoencoderKL, got {kind}. Train on whole images.")
        super().__init__(context, concepts, **settings)

    def _shown(self, rows: Sequence[int], generator: torch.Generator) -> ShownImages:
        backbone = self._backbone
        factor = backbone.pipe.vae_scale_factor
        side = backbone.latent_shape()[1] * factor
        views = [
            view_of(squared(image), side=side, factor=factor, augment=True, flip=True, generator=generator)
            for image in decoded(backbone, self.latents[list(rows)])
        ]
        prompts = [self.prompts[row] for row in rows]
        return ShownImages(
            clean=image_latents(backbone, torch.stack([view.pixels for view in views]), generator),
            named=encoded(backbone, [view.prefix + p.named for view, p in zip(views, prompts, strict=True)]),
            anchors=encoded(
                backbone, [(view.prefix + p.anchor).strip() for view, p in zip(views, prompts, strict=True)]
            ),
            mask=torch.stack([view.mask for view in views]).to(backbone.device),
        )
