"""Stage oracle: the classifier that knows the truth of every picture."""

import math
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from ...progress import OnProgress
from ..data import Drawings
from ..oracle import Oracle, OracleNet
from .autoencoder import decoded, posterior_of
from .batches import batch, channels_last, chunks
from .loop import Loop, write_state
from .recipe import ORACLE_PICTURES, Recipe, full_set

ROUND_TRIPS = 4_000
CALIBRATED = 2_000  # new drawings that the temperatures are fitted on


def oracle_stage(recipe: Recipe, vae: AutoencoderKL, on_progress: OnProgress | None = None) -> Oracle:
    """Train the oracle on drawings, on their autoencoder reconstructions, and on noised, blurred and shuffled ones.

    It learns every concept and individual, whatever the denoiser's training leaves out.
    """
    torch.manual_seed(recipe.seed + 2)
    net = channels_last(OracleNet(), recipe)
    drawn = full_set(ORACLE_PICTURES, recipe, 2)
    trips, truth = _round_trips(recipe, vae, drawn), [torch.from_numpy(t).to(recipe.device) for t in drawn.truth()]

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = batch(drawn, rng, 64, recipe.device)
        for i, row in enumerate(rows):
            if row < len(trips) and i % 2:
                pixels[i] = trips[row].to(pixels).div(127.5).sub(1)
        things, style, scene = (t[rows] for t in truth)
        pixels, ruined = _spoil(pixels, rng)
        guess_things, guess_style, guess_scene, _ = net(pixels.contiguous(memory_format=torch.channels_last))
        things = things * (~ruined)[:, None]
        whole = (~ruined).float()
        known = F.cross_entropy(guess_style, style, reduction="none") + F.cross_entropy(
            guess_scene, scene, reduction="none"
        )
        return 10 * F.binary_cross_entropy_with_logits(guess_things, things) + (known * whole).mean()

    minutes = recipe.minutes_of("oracle")
    Loop(
        recipe=recipe, stage="oracle", modules={"net": net}, loss=loss, minutes=minutes, lr=3 * recipe.lr, average=0.995
    ).run(on_progress)
    net.eval().requires_grad_(False)
    _calibrate(net, recipe)
    return Oracle(net, recipe.device)


@torch.no_grad()
def _round_trips(recipe: Recipe, vae: AutoencoderKL, drawn: Drawings) -> Tensor:
    """Return the first drawings encoded and decoded, uint8 (n, 3, 64, 64), computed once and stored."""
    path = recipe.out / "state" / "round_trips.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parts = []
    for pixels in chunks(drawn, ROUND_TRIPS, 64):
        out = decoded(vae, posterior_of(vae, pixels.to(recipe.device)).mean)
        parts.append(out.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu())
    trips = torch.cat(parts)
    write_state(path, trips)
    return trips


def _spoil(pixels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Augment: flip, shift, jitter, light noise or blur; ruin one in seven (flat colour, strong noise or blur, tiles).

    Returns the pixels and the mask (n,) of those in which nothing can be recognised.
    """
    n = len(pixels)
    if rng.random() < 0.5:
        pixels = pixels.flip(3)
    shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
    pixels = F.pad(pixels, (3, 3, 3, 3), mode="replicate")[
        :, :, 3 + shift[0] : 67 + shift[0], 3 + shift[1] : 67 + shift[1]
    ]
    jitter = torch.from_numpy(rng.uniform(0.88, 1.12, (n, 1, 1, 1)).astype(np.float32)).to(pixels)
    pixels = (
        pixels * jitter + torch.from_numpy(rng.uniform(-0.08, 0.08, (n, 3, 1, 1)).astype(np.float32)).to(pixels)
    ).clone()
    fate = rng.random(n)
    noise = torch.from_numpy(rng.standard_normal(tuple(pixels.shape), dtype=np.float32)).to(pixels)
    ruined = torch.zeros(n, dtype=torch.bool, device=pixels.device)
    for i, roll in enumerate(fate):
        if roll < 0.25:
            pixels[i] += rng.uniform(0.02, 0.25) * noise[i]
        elif roll < 0.35:
            pixels[i] = blur(pixels[i], rng.uniform(0.4, 0.9))
        elif roll < 0.40:  # a flat colour, mostly under noise
            colour = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1)).astype(np.float32)).to(pixels)
            strength = rng.uniform(0.3, 1.5) if rng.random() < 0.6 else rng.uniform(0, 0.1)
            pixels[i], ruined[i] = colour + strength * noise[i], True
        elif roll < 0.45:
            pixels[i], ruined[i] = blur(pixels[i], rng.uniform(9, 16)), True
        elif roll < 0.49:
            pixels[i], ruined[i] = _shuffled_tiles(pixels[i], rng.permutation(64)), True
    return pixels.clamp(-1, 1), ruined


def _shuffled_tiles(pixels: Tensor, order: np.ndarray) -> Tensor:
    tiles = pixels.unfold(1, 8, 8).unfold(2, 8, 8).reshape(3, 64, 8, 8)[:, torch.from_numpy(order)]
    return tiles.reshape(3, 8, 8, 8, 8).permute(0, 1, 3, 2, 4).reshape(3, 64, 64)


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """Return pixels (3, height, width) under a Gaussian of standard deviation `sigma` pixels."""
    radius = min(31, math.ceil(2.5 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None].repeat(3, 1, 1)
    padded = F.pad(pixels[None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[..., None], groups=3), kernel[:, :, None], groups=3)[0]


def _calibrate(net: OracleNet, recipe: Recipe) -> None:
    """Fit one temperature per head on new drawings, by the losses of the training."""
    drawn = full_set(CALIBRATED, recipe, 20)
    parts: list[list[Tensor]] = [[], [], []]
    with torch.no_grad():
        for pixels in chunks(drawn, CALIBRATED, 100):
            for part, logits in zip(parts, net(pixels.to(recipe.device))[:3], strict=True):
                part.append(logits)
    things, style, scene = (torch.from_numpy(t).to(recipe.device) for t in drawn.truth())
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "things": lambda z: F.binary_cross_entropy_with_logits(z, things),
        "style": lambda z: F.cross_entropy(z, style),
        "scene": lambda z: F.cross_entropy(z, scene),
    }
    grid = torch.logspace(-0.7, 0.7, 57)
    for (name, score), part in zip(losses.items(), parts, strict=True):
        logits = torch.cat(part)
        best = min(grid.tolist(), key=lambda t: float(score(logits / t)))
        getattr(net, f"{name}_temperature").fill_(best)
