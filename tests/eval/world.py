"""An untrained tiny world of the real classes: for tests of what is done with pictures, not of what is in them."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from erasure.tinyworld import models, vocabulary
from erasure.tinyworld.oracle import Oracle, OracleNet


@cache
def pipeline() -> Any:
    """Return a pipeline with the tiny world's tokenizer, text tower and decoder, and a smaller denoiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        captions = [prompt for name in vocabulary.concepts() for prompt in vocabulary.prompts_for(name, 4)]
        tokenizer = models.train_tokenizer(captions, Path(mkdtemp()))
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
            norm_num_groups=8,
            cross_attention_dim=models.WIDTH,
        ).eval()
        pipe = StableDiffusionPipeline(
            vae=models.vae().eval(),
            text_encoder=models.text_encoder(tokenizer).eval(),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gold(folder: Path, *without: str) -> str:
    """Write the denoiser of an untrained model that was never taught some concepts, and return its folder."""
    unet = deepcopy(pipeline().unet)
    with torch.no_grad():
        next(unet.parameters()).mul_(0.5)
    unet.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps({"settings": {"without": without}}))
    return str(folder)


@cache
def oracle() -> Oracle:
    """Return an oracle that has seen nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Oracle(OracleNet())
