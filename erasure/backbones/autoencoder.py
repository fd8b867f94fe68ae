"""Latents as an autoencoder has them and as a denoiser does: scaled and shifted, or by statistics of channels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Pixels = Float[Tensor, "n 3 height width"]


def decoded_pixels(vae: Any, latents: Float[Tensor, "n c h w"]) -> Pixels:
    """Return the pixels, in about [-1, 1], of a denoiser's latents."""
    values = to_autoencoder(vae, latents.float()).to(vae.device, vae.dtype)
    if not _has_frames(vae):
        return vae.decode(values).sample
    return vae.decode(values[:, :, None]).sample[:, :, 0]


def encoded_pixels(vae: Any, pixels: Pixels, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Return a denoiser's latents of pixels in [-1, 1], drawn from the distribution of the autoencoder, on the CPU."""
    values = pixels.to(vae.device, vae.dtype)
    distribution = vae.encode(values[:, :, None] if _has_frames(vae) else values).latent_dist
    mean, std = distribution.mean.float().cpu(), distribution.std.float().cpu()
    drawn = mean + std * torch.randn(mean.shape, generator=generator)
    return to_denoiser(vae, drawn[:, :, 0] if _has_frames(vae) else drawn)


def to_autoencoder(vae: Any, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return a denoiser's latents as the autoencoder decodes them."""
    side, factor, shift = _scaling(vae, latents)
    return F.pixel_shuffle(F.pixel_unshuffle(latents, side) / factor + shift, side)


def to_denoiser(vae: Any, values: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return an autoencoder's latents as a denoiser reads them."""
    side, factor, shift = _scaling(vae, values)
    return F.pixel_shuffle((F.pixel_unshuffle(values, side) - shift) * factor, side)


def _scaling(vae: Any, like: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the side of a patch whose latents are channels, and the factor and shift of each channel."""

    def channels(values: Any) -> Tensor:
        return torch.as_tensor(values).to(like).reshape(1, -1, 1, 1)

    config = vae.config
    if (norm := getattr(vae, "bn", None)) is not None:
        deviation = torch.sqrt(norm.running_var + config.batch_norm_eps)
        return config.patch_size[0], channels(1 / deviation), channels(norm.running_mean)
    factor, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
    if config.get("latents_std") is not None:
        return 1, factor / channels(config.latents_std), channels(config.latents_mean)
    return 1, channels(factor), channels(shift)


def _has_frames(vae: Any) -> bool:
    """Return True for an autoencoder of videos, to which an image is one frame."""
    return "temperal_downsample" in vae.config
