"""Stage unet: the denoiser of Stable Diffusion's classes."""

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...backbones import backbone_of
from ...backbones.attention import AttentionCapture, cross_attention_layers
from ...losses.grounding import grounding_loss
from ...progress import OnProgress
from .. import models
from ..data import Drawings
from ..nouns import nouns_of
from .batches import channels_last
from .denoising import CaptionedBatch, CaptionedLatents, TextParts, train_denoiser, words_kept
from .recipe import Recipe, training_set

GROUNDING = 0.05  # weight of the attention maps' loss


class DenoiserLoss:
    """Epsilon loss with min-SNR weighting (gamma 5), stratified timesteps, and grounded attention maps.

    The attention maps of the objects' nouns at the latents' own resolution are trained towards the objects' boxes
    (`losses.grounding`), more strongly at lower noise: in a causal text tower every word after the noun carries the
    object too, and without this loss its maps look no different from the noun's.
    """

    def __init__(self, recipe: Recipe, parts: TextParts, unet: UNet2DConditionModel, drawn: Drawings) -> None:
        self.recipe, self.parts, self.unet, self.drawn = recipe, parts, unet, drawn
        self.captioned = CaptionedLatents(recipe, parts, drawn)
        self.alphas = models.scheduler().alphas_cumprod.to(recipe.device)
        self.weight = (self.alphas / (1 - self.alphas)).clamp(max=5) / (self.alphas / (1 - self.alphas))
        self.backbone = backbone_of(parts.pipeline(unet))
        self.layers = [name for name in cross_attention_layers(self.backbone) if ".up_blocks.2." in name]

    def __call__(self, rng: np.random.Generator, step: int) -> Tensor:
        """Return the loss of one step."""
        del step
        n, device = self.recipe.batch_size, self.recipe.device
        drawn = self.captioned.draw(rng)
        z = drawn.latents
        t = torch.from_numpy(((np.arange(n) + rng.random(n)) * (1000 / n)).astype(np.int64)).to(device)
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32)).to(z)
        a = self.alphas[t][:, None, None, None]
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with AttentionCapture(
            backbone=self.backbone, layers=self.layers, reduce=lambda _, maps: maps.mean(1), implementation="softmax"
        ) as capture:
            predicted = self.unet(noisy, t, drawn.states).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (error * self.weight[t]).mean()
        grounding = self._grounding(torch.stack(list(capture.maps.values())).mean(0), drawn, t)
        return loss if grounding is None else loss + GROUNDING * grounding / n

    def _grounding(self, maps: Tensor, drawn: CaptionedBatch, t: Tensor) -> Tensor | None:
        """Return the grounding loss summed over the captions' nouns; None without a noun or if the recipe has none."""
        pictures = [self.drawn.pictures[row] for row in drawn.rows]
        nouns = nouns_of(self.parts.tokenizer, drawn.captions, pictures).to(self.recipe.device)
        nouns = nouns.where(words_kept(drawn.fate))
        if not len(nouns.row) or not self.recipe.grounding:
            return None
        chosen = maps[nouns.row]  # (nouns, pixels, tokens)
        grounding = grounding_loss((chosen * nouns.tokens[:, None]).sum(2), nouns.boxes.flatten(1))
        return (grounding * self.alphas[t[nouns.row]].sqrt()).sum()


def unet_stage(recipe: Recipe, parts: TextParts, on_progress: OnProgress | None = None) -> UNet2DConditionModel:
    """Train the denoiser on `DenoiserLoss`, with averaged weights."""
    torch.manual_seed(recipe.seed + 3)
    unet = channels_last(models.unet(), recipe)
    loss = DenoiserLoss(recipe, parts, unet, training_set(recipe))
    return train_denoiser(
        recipe,
        parts,
        unet,
        loss,
        stage="unet",
        untrained=lambda: channels_last(models.unet(), recipe),
        on_progress=on_progress,
    )
