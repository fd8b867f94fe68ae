"""Stage judge: the second opinion on images, an open_clip model."""

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ...progress import OnProgress
from ..judge import WorldClip
from ..judge import build as build_judge
from .batches import batch, channels_last, wording
from .loop import Loop
from .recipe import ORACLE_PICTURES, Recipe, full_set
from .text_tower import symmetric_loss


def judge_stage(recipe: Recipe, tokenizer: CLIPTokenizer, on_progress: OnProgress | None = None) -> WorldClip:
    """Train the judge on other drawings with another seed, all individuals included."""
    torch.manual_seed(recipe.seed + 4)
    model = channels_last(build_judge(), recipe)
    drawn = full_set(ORACLE_PICTURES, recipe, 2)
    judge = WorldClip(model, tokenizer, recipe.device)
    model.train()

    def loss(rng: np.random.Generator, step: int) -> Tensor:
        del step
        rows, pixels = batch(drawn, rng, 128, recipe.device)
        ids = judge.ids(drawn.captions(rows, wording(rng))).to(recipe.device)
        out: dict[str, Tensor] | tuple[Tensor, ...] = model(pixels, ids)
        images, texts, scale = (
            (out["image_features"], out["text_features"], out["logit_scale"]) if isinstance(out, dict) else out[:3]
        )
        return symmetric_loss(scale * images @ texts.T)

    minutes = recipe.minutes_of("judge")
    Loop(
        recipe=recipe, stage="judge", modules={"model": model}, loss=loss, minutes=minutes, lr=recipe.lr, average=0.995
    ).run(on_progress)
    return WorldClip(model, tokenizer, recipe.device)
