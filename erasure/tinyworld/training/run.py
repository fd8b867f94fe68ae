"""A whole training: the stages in order, then the model's folder."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ...progress import progress_bars
from .autoencoder import vae_stage
from .denoiser import unet_stage
from .denoising import TextParts
from .judge import judge_stage
from .oracle import oracle_stage
from .recipe import DENOISERS, SHARES, Recipe
from .start import start_from
from .text_tower import clip_stage, tokenizer_stage
from .transformer import transformer_stage

logger = logging.getLogger(__name__)


def train(recipe: Recipe, *, console: Console | None = None) -> Path:
    """Train the recipe's stages in order, each from its last state, and return the folder of the finished model."""
    stages, world = {*recipe.stages}, recipe.denoiser == "unet"  # the transformer is judged by the shipped judges
    start_from(recipe)
    with progress_bars(console) as on_progress:
        tokenizer = tokenizer_stage(recipe)
        if stages == {"tokenizer"}:
            return recipe.out
        judge = judge_stage(recipe, tokenizer, on_progress) if world and {"judge", "assemble"} & stages else None
        text = clip_stage(recipe, tokenizer, on_progress) if {"clip", *DENOISERS, "assemble"} & stages else None
        vae = vae_stage(recipe, on_progress) if {"vae", "oracle", *DENOISERS, "assemble"} & stages else None
        oracle = oracle_stage(recipe, vae, on_progress) if world and vae and {"oracle", "assemble"} & stages else None
        if text is None or vae is None or not {*DENOISERS, "assemble"} & stages:
            return recipe.out
        parts = TextParts(tokenizer=tokenizer, text=text, vae=vae)
        denoiser = (unet_stage if world else transformer_stage)(recipe, parts, on_progress)
    if "assemble" not in stages:
        return recipe.out
    model = recipe.out / "model"
    TextParts(tokenizer=tokenizer, text=text.half(), vae=vae.half()).pipeline(denoiser.half()).save_pretrained(model)
    for config in model.glob("text_encoder*/config.json"):
        _load_as_float32(config)
    if oracle:
        oracle.save(model / "oracle")
    if judge:
        judge.save(model / "judge")
    (model / "recipe.json").write_text(json.dumps(facts(recipe), indent=2) + "\n")
    _draw_losses(recipe.out / "losses", model / "losses.png")
    return model


def _draw_losses(folder: Path, path: Path) -> None:
    """Draw the logged loss curves of all stages; matplotlib comes with the `eval` extra."""
    curves = {p.stem: np.loadtxt(p, delimiter=",", ndmin=2) for p in sorted(folder.glob("*.csv"))}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no loss curves drawn: expected the package matplotlib, got none. Install erasure[eval].")
        return
    figure = Figure(figsize=(3 * max(len(curves), 1), 2.4), layout="constrained")
    for i, (stage, rows) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), i + 1)
        axes.plot(rows[:, 0], rows[:, 2], linewidth=1)
        axes.set(title=stage, xlabel="step", yscale="log")
    figure.savefig(path, dpi=90)


def _load_as_float32(path: Path) -> None:
    """Make transformers load a float16 file in float32, as diffusers does: a pipeline of both cannot run."""
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def facts(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return the content of recipe.json: settings, and steps and minutes of each stage."""
    stages: dict[str, object] = {}
    for stage in SHARES:
        path = recipe.out / "state" / f"{stage}.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            stages[stage] = {"steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}
    names = ["pictures", "seed", "batch_size", "without", "lr", "device", "precision"]
    names += ["grounding"] if recipe.denoiser == "unet" else []  # the transformer's maps are left alone
    return {"settings": {name: getattr(recipe, name) for name in names}, "stages": stages}
