"""Models of full size with random weights, written shard by shard: nothing of that size is in memory."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PretrainedConfig,
    T5Config,
    T5EncoderModel,
)

from benchmarks.record import peak_mib, reset_peak, resident_mib
from erasure import erase
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.io.tensor_files import write_tensors
from tests import tiny

# A small process starts the command: what a process held when it forked counts as its child's. Memory without files,
# which the system does not sum up, is looked at every few milliseconds.
_WAITING = """
import os, re, subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
ended = anonymous = 0
while not ended:
    try:
        with open(f"/proc/{child.pid}/status") as file:
            held = re.search(r"RssAnon:\\s+(\\d+)", file.read())
    except OSError:
        held = None
    anonymous = max(anonymous, int(held[1]) if held else 0)
    time.sleep(0.02)
    ended, status, usage = os.wait4(child.pid, os.WNOHANG)
print(usage.ru_maxrss, anonymous)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_SHARD = 500 * 2**20  # bytes
_FIRST = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SECOND = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def sd15() -> Any:
    """Return a pipeline of Stable Diffusion 1.5's sizes without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae, text_encoder = tiny.full_vae(), CLIPTextModel(_text_config("quick_gelu", **_FIRST))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny.tokenizer("clip"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Return a pipeline of Stable Diffusion XL's sizes without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        vae, text_encoder = tiny.full_vae(), CLIPTextModel(_text_config("quick_gelu", **_FIRST))
        text_encoder_2 = CLIPTextModelWithProjection(_text_config("gelu", **_SECOND))
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tiny.tokenizer("clip"),
        tokenizer_2=tiny.tokenizer("clip", pad_token="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )


def flux(blocks: tuple[int, int] = (19, 38), layers: int = 24) -> Any:
    """Return a pipeline of FLUX.1's sizes without weights.

    Args:
        blocks: Number of double and of single blocks of the transformer.
        layers: Number of layers of T5-XXL.
    """
    tokens = tiny.t5_tokenizer(512, 32_000)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=blocks[0], num_single_layers=blocks[1], guidance_embeds=True)
        vae = tiny.full_vae(latent_channels=16, shift_factor=0.1159, scaling_factor=0.3611)
        text_encoder = CLIPTextModel(_text_config("quick_gelu", **_FIRST))
        sizes = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": layers}
        text_encoder_2 = T5EncoderModel(T5Config(**sizes, vocab_size=32_128, feed_forward_proj="gated-gelu"))
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny.tokenizer("clip"),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokens,
        transformer=transformer,
    )


MODELS: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl}

# Models that are larger than the memory of most machines: 33 GB in bfloat16; the same with 4 of T5's 24 layers, which
# are read one after another and are most of the time; and of the same widths 3 GB.
LARGE: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "flux-short": lambda: flux(layers=4),
    "flux-thin": lambda: flux((1, 1), 2),
}


def write_model(pipe: Any, folder: Path, *, dtype: torch.dtype = torch.float16, seed: int = 0) -> None:
    """Write a pipeline without weights in diffusers' layout, with random ones in shards."""
    generator = torch.Generator().manual_seed(seed)
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module):
            if part is not None:
                part.save_pretrained(folder / name)
            continue
        described: Any = part
        if isinstance(described.config, PretrainedConfig):
            described.config.architectures = [type(part).__name__]
            described.config.save_pretrained(folder / name)
            _write_weights(part, folder / name, "model", dtype, generator)
        else:
            described.save_config(folder / name)
            _write_weights(part, folder / name, "diffusion_pytorch_model", dtype, generator)


def text_weights_mib(pipe: Any) -> float:
    """Return the size of the key and value projections of cross-attention, as they are in memory."""
    weights = tiny.text_weights(backbone_of(pipe)).values()
    return sum(weight.numel() * weight.element_size() for weight in weights) / 2**20


def bound_mib(touched: float) -> float:
    """Return what a closed form may take beyond a loaded model: 1.2 times the weights that it changes, and 300 MB."""
    return 1.2 * touched + 300e6 / 2**20


def peak_beyond_mib(pipe: Any, concept: Concept) -> float:
    """Return the most memory, beyond that of a loaded model, that removing a concept by UCE takes; Linux only."""
    for parameter in backbone_of(pipe).parameters(lambda _: True).values():
        parameter.detach().sum()  # what is mapped from a file is in memory once it was read
    reset_peak()
    before = resident_mib()
    with erase(pipe, concept).applied_to(pipe):
        return peak_mib() - before


def command(arguments: Sequence[str]) -> dict[str, float]:
    """Run `erasure` in a process of its own, and return its seconds and its peak memory in MiB.

    `anonymous_mib` is the part of it that no file backs; Linux only, else 0.

    Raises:
        RuntimeError: It failed.
    """
    start = time.perf_counter()
    waiting = [sys.executable, "-c", _WAITING, sys.executable, "-m", "erasure", *arguments]
    done = subprocess.run(waiting, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"erasure {' '.join(arguments)}: {done.stderr[-500:]}")
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak, anonymous = map(int, done.stdout.split())
    return {
        "seconds": time.perf_counter() - start,
        "peak_mib": peak / unit,
        "anonymous_mib": anonymous / 2**10,
    }


def _text_config(activation: str, **sizes: int) -> CLIPTextConfig:
    tokens = tiny.tokenizer("clip")
    return CLIPTextConfig(
        vocab_size=len(tokens),
        projection_dim=sizes["hidden_size"],
        max_position_embeddings=tiny.POSITIONS,
        hidden_act=activation,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        **sizes,
    )


def _write_weights(part: nn.Module, folder: Path, stem: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    shards = list(_shards(part, dtype))
    placed: dict[str, str] = {}
    for at, names in enumerate(shards, 1):
        file = f"{stem}-{at:05d}-of-{len(shards):05d}.safetensors"
        shapes = {name: part.get_parameter(name).shape for name in names}
        write_tensors(
            folder / file, {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}
        )
        placed |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(part: nn.Module, dtype: torch.dtype) -> Iterator[list[str]]:
    """Yield the names of a component's parameters, as many at a time as go into a file."""
    names: list[str] = []
    size = 0
    for name, parameter in part.named_parameters():
        size += parameter.numel() * dtype.itemsize
        if size > _SHARD and names:
            yield names
            names, size = [], parameter.numel() * dtype.itemsize
        names.append(name)
    yield names


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if len(shape) > 1:
        return torch.empty(shape).normal_(std=0.02, generator=generator)
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
