"""Stage vae: the autoencoder, and the latents of the drawings."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from ...progress import OnProgress
from .. import models
from ..data import Drawings
from .batches import batch, channels_last, chunks
from .loop import Loop, write_state
from .recipe import Recipe, training_set

ENCODED = 32_000  # drawings that the denoiser learns from: encoding one costs a quarter of a training step on it
NORMALISED = 16  # batches of 64 drawings that the latents' mean and variance are taken over


def posterior_of(vae: AutoencoderKL, pixels: Tensor) -> DiagonalGaussianDistribution:
    """Return the distribution of the latents of pixels in [-1, 1]."""
    (posterior,) = vae.encode(pixels, return_dict=False)
    return posterior


def decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return the pixels of latents, about [-1, 1]."""
    (pixels,) = vae.decode(latents, return_dict=False)  # type: ignore[arg-type]
    return pixels


def vae_stage(recipe: Recipe, on_progress: OnProgress | None = None) -> AutoencoderKL:
    """Train the autoencoder on L1, edges, colours of 4 x 4 blocks and a small KL; then normalise its latents."""
    torch.manual_seed(recipe.seed + 1)
    vae = channels_last(models.vae(), recipe)
    _start_linear(vae)
    drawn = training_set(recipe)

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        _, pixels = batch(drawn, rng, 5, recipe.device)  # many small steps: colours take thousands to appear
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        posterior = posterior_of(vae, pixels)
        noise = torch.from_numpy(rng.standard_normal(tuple(posterior.mean.shape), dtype=np.float32)).to(pixels)
        out = decoded(vae, posterior.mean + posterior.std * noise)
        error = out - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        colours = F.avg_pool2d(error, 4).abs().mean()
        return error.abs().mean() + 0.5 * edges + 2 * colours + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    minutes = recipe.minutes_of("vae")
    Loop(
        recipe=recipe, stage="vae", modules={"vae": vae}, loss=loss, minutes=minutes, lr=1.5 * recipe.lr, average=0.998
    ).run(on_progress)
    vae = vae.eval().requires_grad_(False)
    normalise_latents(vae, drawn, recipe)
    return vae


@torch.no_grad()
def _start_linear(vae: AutoencoderKL) -> None:
    """Zero the residual branches and let every other convolution pass its first channels on.

    Training then starts from a blurred colour copy of the image; from the usual random start colours take thousands
    of steps to appear.
    """
    for name, module in vae.named_modules():
        if name.endswith((".conv2", ".to_out.0")) and isinstance(module, nn.Conv2d | nn.Linear):
            for parameter in module.parameters():
                parameter.zero_()
        elif isinstance(module, nn.Conv2d) and not name.endswith((".conv1", "quant_conv")):
            module.weight += nn.init.dirac_(torch.empty_like(module.weight))
    for conv in (vae.quant_conv, vae.post_quant_conv):
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            nn.init.dirac_(conv.weight)
            conv.bias.zero_()
            conv.bias[4:] = -6.0  # log variance: little noise, or faint signals are lost in it


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, drawn: Drawings, recipe: Recipe) -> None:
    """Give the latents' channels zero mean and unit variance, by the 1 x 1 convolutions before and after them.

    Latents that have them to within a twentieth, as in a finished model, are left as they are.

    Raises:
        TypeError: The autoencoder has no such convolutions.
    """
    rng = np.random.default_rng(recipe.seed)
    latents = torch.cat([posterior_of(vae, batch(drawn, rng, 64, recipe.device)[1]).mean for _ in range(NORMALISED)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    if mean.abs().max() < 0.05 and (std - 1).abs().max() < 0.05:
        return
    quant, post = vae.quant_conv, vae.post_quant_conv
    if not isinstance(quant, nn.Conv2d) or not isinstance(post, nn.Conv2d) or quant.bias is None or post.bias is None:
        raise TypeError("the autoencoder has no 1 x 1 convolutions around its latents")
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()


@torch.no_grad()
def encoded(recipe: Recipe, vae: AutoencoderKL, drawn: Drawings) -> Tensor:
    """Return the latents of the first drawings, float16 (n, 4, 16, 16), computed once and stored."""
    path = recipe.out / "state" / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for pixels in chunks(drawn, min(ENCODED, len(drawn.pictures)), 64):
        moved = pixels.to(recipe.device).contiguous(memory_format=torch.channels_last)
        parts.append(posterior_of(vae, moved).mean.half().cpu())
    latents = torch.cat(parts)
    write_state(path, latents)
    return latents
