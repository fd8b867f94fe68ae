"""Stages tokenizer and clip: the text side of the model."""

import math
import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from ...progress import OnProgress
from .. import models
from ..data import pictures_of
from ..vocabulary import INDIVIDUALS
from ..world import Mix, caption
from .batches import batch, channels_last, token_ids, wording
from .loop import Loop
from .recipe import Recipe, training_set


def tokenizer_stage(recipe: Recipe) -> CLIPTokenizer:
    """Train the tokenizer, or load it if it was trained before."""
    folder = recipe.out / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(f"tokenizer:{recipe.seed}")
    return models.train_tokenizer(
        (caption(p, rng) for p in pictures_of(20_000, recipe.seed, Mix(individuals=tuple(INDIVIDUALS)))), folder
    )


class ImageTower(nn.Module):
    """Image encoder of the CLIP that trains the text tower; discarded afterwards."""

    def __init__(self, width: int = models.WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 96), (96, 128)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()] if after > 32 else []
        self.body, self.head = nn.Sequential(*layers), nn.Linear(4 * 4 * 128, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features (n, width) of pixels (n, 3, 64, 64) in [-1, 1]."""
        return self.head(self.body(pixels).flatten(1))


def clip_stage(recipe: Recipe, tokenizer: CLIPTokenizer, on_progress: OnProgress | None = None) -> CLIPTextModel:
    """Train the text tower contrastively against an image tower (symmetric InfoNCE, learned temperature)."""
    torch.manual_seed(recipe.seed)
    text, images = channels_last(models.text_encoder(tokenizer), recipe), channels_last(ImageTower(), recipe)
    project = nn.Linear(models.WIDTH, models.WIDTH, bias=False).to(recipe.device)
    scale = nn.Linear(1, 1, bias=False).to(recipe.device)
    nn.init.constant_(scale.weight, math.log(1 / 0.07))
    drawn = training_set(recipe)

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = batch(drawn, rng, 128, recipe.device)
        ids = token_ids(tokenizer, drawn.captions(rows, wording(rng)), recipe.device)
        a = F.normalize(images(pixels.contiguous(memory_format=torch.channels_last)), dim=1)
        b = F.normalize(project(text(ids).pooler_output), dim=1)
        return symmetric_loss(a @ b.T * scale.weight.clamp(max=math.log(100)).exp())

    parts = {"text": text, "images": images, "project": project, "scale": scale}
    Loop(recipe=recipe, stage="clip", modules=parts, loss=loss, minutes=recipe.minutes_of("clip"), lr=recipe.lr).run(
        on_progress
    )
    return text.eval().requires_grad_(False)


def symmetric_loss(logits: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of logits (n, n) whose diagonal holds the true pairs."""
    truth = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
