"""Training of any denoiser: parts of the pipeline beside it, latents with captions, sheets of samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ...progress import OnProgress
from ...sampling import SamplingSettings, sample
from .. import models
from ..data import Drawings
from ..vocabulary import OBJECTS, SCENE_PHRASES, STYLE_PHRASES, article
from .autoencoder import encoded
from .batches import token_ids, wording
from .loop import Loop, StageLoss
from .recipe import Recipe

AnyDenoiser = TypeVar("AnyDenoiser", bound=nn.Module)

# Shares of captions: only the words keep their states; only the positions from the first end of text on; none do.
WORDS_ALONE, TRAILING_ALONE, NO_PROMPT = 0.35, 0.10, 0.10
PAIRS = 0.6  # share of a batch, besides those of the mix: two objects are hardest
NEUTRAL = "a picture of something there"
SHEET_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class TextParts:
    """Trained parts of the pipeline apart from the denoiser."""

    tokenizer: CLIPTokenizer
    text: CLIPTextModel
    vae: AutoencoderKL

    def pipeline(self, denoiser: nn.Module) -> StableDiffusionPipeline | FluxPipeline:
        """Return the pipeline of these parts and a denoiser."""
        if isinstance(denoiser, FluxTransformer2DModel):
            return models.assemble_flux(denoiser, self.text, self.vae, self.tokenizer)
        return models.assemble(denoiser, self.text, self.vae, self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class CaptionedBatch:
    """Latents of drawings and the states of new captions.

    Attributes:
        rows: Numbers of the drawings.
        captions: Captions.
        ids: Token ids of the captions.
        latents: Latents without noise.
        states: States of the tokens; see `mixed_states`.
        pooled: Sentence vectors.
        fate: Draws in [0, 1) that decide which states are replaced.
    """

    rows: NDArray[np.int64]
    captions: list[str]
    ids: Tensor
    latents: Tensor
    states: Tensor
    pooled: Tensor
    fate: Tensor


class CaptionedLatents:
    """Latents of the training's drawings; captions are drawn anew for every batch.

    For a share of them the states from the first end of text on are those of the empty prompt; for another share the
    words' states are those of a neutral prompt: either side must be able to draw the object alone.
    """

    def __init__(self, recipe: Recipe, parts: TextParts, drawn: Drawings) -> None:
        self.recipe, self.parts, self.drawn = recipe, parts, drawn
        self.latents = encoded(recipe, parts.vae, drawn)
        pairs = [i for i in range(len(self.latents)) if len(drawn.pictures[i].things) > 1]
        self.pairs = np.array(pairs or range(len(self.latents)))
        self.eos = models.token_id(parts.tokenizer.eos_token_id)
        with torch.no_grad():
            self.empty, self.neutral = (parts.text(self.ids([text])) for text in ("", NEUTRAL))

    def draw(self, rng: np.random.Generator) -> CaptionedBatch:
        """Draw the batch of one step."""
        n, device = self.recipe.batch_size, self.recipe.device
        rows = np.where(rng.random(n) < PAIRS, rng.choice(self.pairs, n), rng.integers(0, len(self.latents), n))
        latents = self.latents[rows].to(device).float()
        captions = self.drawn.captions(rows, wording(rng))
        ids = self.ids(captions)
        with torch.no_grad():
            text = self.parts.text(ids)
        fate = torch.from_numpy(rng.random(n)).to(device)
        empty, neutral = self.empty.last_hidden_state, self.neutral.last_hidden_state
        states = mixed_states(text.last_hidden_state, ids, empty, neutral, self.eos, fate)
        return CaptionedBatch(
            rows=rows, captions=captions, ids=ids, latents=latents, states=states, pooled=text.pooler_output, fate=fate
        )

    def ids(self, texts: list[str]) -> Tensor:
        """Return the token ids of texts."""
        return token_ids(self.parts.tokenizer, texts, self.recipe.device)


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


def train_denoiser(
    recipe: Recipe,
    parts: TextParts,
    denoiser: AnyDenoiser,
    loss: StageLoss,
    *,
    stage: str,
    untrained: Callable[[], nn.Module],
    on_progress: OnProgress | None = None,
) -> AnyDenoiser:
    """Train a denoiser on a loss, with averaged weights, and return it.

    Args:
        recipe: Recipe of the training.
        parts: Other parts of the pipeline, for the sheets of samples.
        denoiser: Denoiser to train.
        loss: Loss of a step.
        stage: Name of the stage.
        untrained: Returns another denoiser of the same class, for the sheets of samples.
        on_progress: Receives the progress.
    """
    loop = Loop(
        recipe=recipe,
        stage=stage,
        modules={stage: denoiser},
        loss=loss,
        minutes=recipe.minutes_of(stage),
        lr=recipe.lr,
        average=0.999,
        steps=recipe.steps,
    )
    loop.show = lambda step: write_samples(recipe, loop, parts, untrained(), step)
    loop.run(on_progress)
    return denoiser.eval().requires_grad_(False)


def write_samples(recipe: Recipe, loop: Loop, parts: TextParts, denoiser: nn.Module, step: int) -> None:
    """Write a sheet of images sampled with the averaged weights.

    Args:
        recipe: Recipe of the training.
        loop: Loop that trains the denoiser, its only module.
        parts: Other parts of the pipeline.
        denoiser: Another denoiser of the same class, which takes the averaged weights.
        step: Step, for the file's name.
    """
    (weights,) = loop.shadow.values()
    denoiser.load_state_dict(weights)
    prompts = [f"a photo of {article(o)}" for o in OBJECTS] + [f"Biscuit {SCENE_PHRASES['beach'][0]}", "Mittens"]
    prompts += [STYLE_PHRASES[s][1].format("a cat") for s in STYLE_PHRASES] + ["a cat and a dog", "a tree and a car"]
    pipe = parts.pipeline(denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    images = sample(pipe, prompts, [7] * len(prompts), SamplingSettings(steps=SHEET_STEPS, guidance_scale=4.0))
    sheet = Image.new("RGB", (12 * 66, math.ceil(len(prompts) / 12) * 66), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % 12 * 66, i // 12 * 66))
    folder = recipe.out / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"{loop.stage}-{step:06d}.png")
