"""Stage unet: the denoiser."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ...backbones import backbone_of
from ...backbones.attention import AttentionCapture, cross_attention_layers
from ...losses.grounding import grounding_loss
from ...progress import OnProgress
from ...sampling import SamplingSettings
from .. import models
from ..data import Drawings
from ..nouns import nouns_of
from ..vocabulary import OBJECTS, SCENE_PHRASES, STYLE_PHRASES, article
from .autoencoder import encoded
from .batches import channels_last, token_ids, wording
from .loop import Loop
from .recipe import Recipe, training_set

# Shares of captions: only the words keep their states; only the positions from the first end of text on; none do.
WORDS_ALONE, TRAILING_ALONE, NO_PROMPT = 0.35, 0.10, 0.10
PAIRS = 0.6  # share of a batch, besides those of the mix: two objects are hardest
GROUNDING = 0.05  # weight of the attention maps' loss
NEUTRAL = "a picture of something there"


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """Trained parts of the pipeline apart from the denoiser."""

    tokenizer: CLIPTokenizer
    text: CLIPTextModel
    vae: AutoencoderKL

    def pipeline(self, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        """Return the pipeline of these parts and a denoiser."""
        return models.assemble(unet, self.text, self.vae, self.tokenizer)


class DenoiserLoss:
    """Epsilon loss with min-SNR weighting (gamma 5), stratified timesteps, and grounded attention maps.

    Captions are drawn anew for every step. For a share of them the states from the first end of text on are those of
    the empty prompt; for another share the words' states are those of a neutral prompt: either side must be able to
    draw the object alone. The attention maps of the objects' nouns at the latents' own resolution are trained towards
    the objects' boxes (`losses.grounding`), more strongly at lower noise: in a causal text tower every word after the
    noun carries the object too, and without this loss its maps look no different from the noun's.
    """

    def __init__(self, recipe: Recipe, parts: TextParts, unet: UNet2DConditionModel, drawn: Drawings) -> None:
        self.recipe, self.parts, self.unet, self.drawn = recipe, parts, unet, drawn
        self.latents = encoded(recipe, parts.vae, drawn)
        pairs = [i for i in range(len(self.latents)) if len(drawn.pictures[i].things) > 1]
        self.pairs = np.array(pairs or range(len(self.latents)))
        self.alphas = models.scheduler().alphas_cumprod.to(recipe.device)
        self.weight = (self.alphas / (1 - self.alphas)).clamp(max=5) / (self.alphas / (1 - self.alphas))
        self.backbone = backbone_of(parts.pipeline(unet))
        self.layers = [name for name in cross_attention_layers(self.backbone) if ".up_blocks.2." in name]
        self.eos = models.token_id(parts.tokenizer.eos_token_id)
        with torch.no_grad():
            self.empty, self.neutral = (parts.text(self._ids([t])).last_hidden_state for t in ("", NEUTRAL))

    def __call__(self, rng: np.random.Generator, step: int) -> Tensor:
        """Return the loss of one step."""
        del step
        n, device = self.recipe.batch_size, self.recipe.device
        rows = np.where(rng.random(n) < PAIRS, rng.choice(self.pairs, n), rng.integers(0, len(self.latents), n))
        z = self.latents[rows].to(device).float()
        captions = self.drawn.captions(rows, wording(rng))
        ids = self._ids(captions)
        with torch.no_grad():
            states = self.parts.text(ids).last_hidden_state
        fate = torch.from_numpy(rng.random(n)).to(device)
        states = mixed_states(states, ids, self.empty, self.neutral, self.eos, fate)
        t = torch.from_numpy(((np.arange(n) + rng.random(n)) * (1000 / n)).astype(np.int64)).to(device)
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32)).to(z)
        a = self.alphas[t][:, None, None, None]
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with AttentionCapture(
            backbone=self.backbone, layers=self.layers, reduce=lambda _, maps: maps.mean(1), implementation="softmax"
        ) as capture:
            predicted = self.unet(noisy, t, states).sample
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (error * self.weight[t]).mean()
        grounding = self._grounding(torch.stack(list(capture.maps.values())).mean(0), captions, rows, fate, t)
        return loss if grounding is None else loss + GROUNDING * grounding / n

    def _grounding(
        self, maps: Tensor, captions: list[str], rows: NDArray[np.int64], fate: Tensor, t: Tensor
    ) -> Tensor | None:
        """Return the grounding loss summed over the captions' nouns; None without a noun or if the recipe has none."""
        pictures = [self.drawn.pictures[row] for row in rows]
        nouns = nouns_of(self.parts.tokenizer, captions, pictures).to(self.recipe.device)
        nouns = nouns.where(words_kept(fate))
        if not len(nouns.row) or not self.recipe.grounding:
            return None
        chosen = maps[nouns.row]  # (nouns, pixels, tokens)
        grounding = grounding_loss((chosen * nouns.tokens[:, None]).sum(2), nouns.boxes.flatten(1))
        return (grounding * self.alphas[t[nouns.row]].sqrt()).sum()

    def _ids(self, texts: list[str]) -> Tensor:
        return token_ids(self.parts.tokenizer, texts, self.recipe.device)


def unet_stage(recipe: Recipe, parts: TextParts, on_progress: OnProgress | None = None) -> UNet2DConditionModel:
    """Train the denoiser on `DenoiserLoss`, with averaged weights."""
    torch.manual_seed(recipe.seed + 3)
    unet = channels_last(models.unet(), recipe)
    loop = Loop(
        recipe=recipe,
        stage="unet",
        modules={"unet": unet},
        loss=DenoiserLoss(recipe, parts, unet, training_set(recipe)),
        minutes=recipe.minutes_of("unet"),
        lr=recipe.lr,
        average=0.999,
        steps=recipe.steps,
    )
    loop.show = lambda step: _write_samples(recipe, loop, parts, step)
    loop.run(on_progress)
    return unet.eval().requires_grad_(False)


def mixed_states(states: Tensor, ids: Tensor, empty: Tensor, neutral: Tensor, eos: int, fate: Tensor) -> Tensor:
    """Replace a share of the states; `fate` (n,) in [0, 1) decides for each row, as in `words_kept`."""
    first = (ids == eos).int().argmax(1)
    place = torch.arange(ids.shape[1], device=ids.device)[None]
    trailing = (place >= first[:, None])[..., None]
    word = ~trailing & (place > 0)[..., None]
    fate = fate[:, None, None]
    states = torch.where((fate < WORDS_ALONE) & trailing, empty, states)
    states = torch.where((fate >= WORDS_ALONE) & (fate < WORDS_ALONE + TRAILING_ALONE) & word, neutral, states)
    return torch.where(fate > 1 - NO_PROMPT, empty, states)


def words_kept(fate: Tensor) -> Tensor:
    """Return the mask (n,) of the rows whose words keep their own states."""
    return ((fate < WORDS_ALONE) | (fate >= WORDS_ALONE + TRAILING_ALONE)) & (fate <= 1 - NO_PROMPT)


def _write_samples(recipe: Recipe, loop: Loop, parts: TextParts, step: int) -> None:
    """Write a sheet of images sampled with the averaged weights."""
    from ...sampling import sample

    unet = channels_last(models.unet(), recipe)
    unet.load_state_dict(loop.shadow["unet"])
    prompts = [f"a photo of {article(o)}" for o in OBJECTS] + [f"Biscuit {SCENE_PHRASES['beach'][0]}", "Mittens"]
    prompts += [STYLE_PHRASES[s][1].format("a cat") for s in STYLE_PHRASES] + ["a cat and a dog", "a tree and a car"]
    pipe = parts.pipeline(unet.eval())
    pipe.set_progress_bar_config(disable=True)
    images = sample(pipe, prompts, [7] * len(prompts), SamplingSettings(steps=20, guidance_scale=4.0))
    sheet = Image.new("RGB", (12 * 66, math.ceil(len(prompts) / 12) * 66), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % 12 * 66, i // 12 * 66))
    folder = recipe.out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"unet-{step:06d}.png")
