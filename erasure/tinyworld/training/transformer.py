"""Stage transformer: the denoiser of FLUX's classes, trained by flow matching."""

from typing import cast

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...backbones import backbone_of
from ...backbones.base import Backbone
from ...backbones.conditioning import POOLED, TEXT, Conditioning, Stream
from ...progress import OnProgress
from .. import models
from ..data import Drawings
from .denoising import NO_PROMPT, CaptionedBatch, CaptionedLatents, TextParts, train_denoiser
from .recipe import Recipe, training_set

# 7.6 h of one core, measured: 0.65 s a step of 32 images in bfloat16. Batch and learning rate are the UNet's: a step of
# 64 takes twice as long on a core, so that half as many fit, and the loss falls without a jump from the first step on.
TRANSFORMER_STEPS = 42_000
# Shares of captions: the sentence vector is that of the empty prompt; it alone is left.
TOKENS_ALONE, SENTENCE_ALONE = 0.35, 0.05


class FlowLoss:
    """Mean squared error of the velocity on straight paths (rectified flow, arXiv:2209.03003, eq. 1).

    Noise levels are logit-normal, the best density of arXiv:2403.03206, section 5.1, and stratified. The states of
    the tokens are replaced as for the UNet. Of some captions the sentence vector is the empty prompt's, of others it
    alone is left: either must be able to draw the object alone, as after SD3's independent dropout of its encoders.
    """

    def __init__(self, recipe: Recipe, parts: TextParts, transformer: nn.Module, drawn: Drawings) -> None:
        self.captioned = CaptionedLatents(recipe, parts, drawn)
        self.backbone = backbone_of(parts.pipeline(transformer))

    def __call__(self, rng: np.random.Generator, step: int) -> Tensor:
        """Return the loss of one step."""
        del step
        drawn = self.captioned.draw(rng)
        roll = torch.from_numpy(rng.random(len(drawn.captions))).to(drawn.fate)
        conditioning = mixed_sentences(drawn, self.captioned.empty, roll)
        levels = noise_levels(rng, len(conditioning)).to(drawn.latents)
        noise = torch.from_numpy(rng.standard_normal(tuple(drawn.latents.shape), dtype=np.float32))
        return flow_loss(self.backbone, drawn.latents, noise.to(drawn.latents), levels, conditioning)


def mixed_sentences(drawn: CaptionedBatch, empty: BaseModelOutputWithPooling, roll: Tensor) -> Conditioning:
    """Return the streams of a batch; `roll` (n,) in [0, 1) decides whose sentence vector is replaced.

    Args:
        drawn: Batch, in which the tokens' states are mixed; captions that it emptied lose their sentence vector too.
        empty: Output of the text tower for the empty prompt.
        roll: Draws.
    """
    assert empty.last_hidden_state is not None
    assert empty.pooler_output is not None
    prompted = drawn.fate <= 1 - NO_PROMPT
    alone = (prompted & (roll >= 1 - SENTENCE_ALONE))[:, None]
    pooled = torch.where((prompted & (roll >= TOKENS_ALONE))[:, None], drawn.pooled, empty.pooler_output)
    states = torch.where(alone[..., None], empty.last_hidden_state, drawn.states)
    return Conditioning(
        prompts=tuple(drawn.captions), streams={TEXT: Stream(states=states), POOLED: Stream(states=pooled[:, None])}
    )


def noise_levels(rng: np.random.Generator, n: int) -> Tensor:
    """Draw noise levels (n,) in [0, 1], of which one is in each n-th of a standard logit-normal distribution."""
    return torch.special.expit(torch.special.ndtri(torch.from_numpy((np.arange(n) + rng.random(n)) / n)))


def flow_loss(backbone: Backbone, clean: Tensor, noise: Tensor, levels: Tensor, conditioning: Conditioning) -> Tensor:
    """Return the mean squared error of a flow model's velocity at noise levels (n,), one for each of the latents."""
    schedule = backbone.schedule
    timestep = levels * schedule.total
    velocity = backbone.predict(schedule.noised(clean, noise, timestep), timestep, conditioning)
    return (velocity.float() - schedule.target(clean, noise, timestep)).square().mean()


def transformer_stage(recipe: Recipe, parts: TextParts, on_progress: OnProgress | None = None) -> nn.Module:
    """Train the transformer on `FlowLoss`, with averaged weights."""
    torch.manual_seed(recipe.seed + 5)
    transformer = _untrained(recipe)
    _keep_float32(transformer)
    loss = FlowLoss(recipe, parts, transformer, training_set(recipe))
    return train_denoiser(
        recipe,
        parts,
        transformer,
        loss,
        stage="transformer",
        untrained=lambda: _untrained(recipe),
        on_progress=on_progress,
    )


def _untrained(recipe: Recipe) -> FluxTransformer2DModel:
    transformer = cast("nn.Module", models.transformer()).to(recipe.device)
    return cast("FluxTransformer2DModel", transformer)


def _keep_float32(transformer: FluxTransformer2DModel) -> None:
    """Keep the sums of the blocks in float32 under autocast, and with them the noise level, which takes their type."""
    for embedder in (transformer.x_embedder, transformer.context_embedder):
        embedder.register_forward_hook(lambda module, args, output: output.float())
