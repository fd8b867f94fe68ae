"""LoRA files under the names of kohya's training scripts, which ComfyUI and A1111 read."""

from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from erasure.backbones import backbone_of
from erasure.backbones.loaded import unwrapped
from erasure.errors import InputError

from .checkpoint import denoiser_name

_COMFY = "diffusion_model."  # beginning of ComfyUI's names, whose rest and factors are diffusers'
_DIFFUSERS = "lora_transformer_"  # beginning of names whose rest is diffusers'
_DOWN = ".lora_A.weight"


def kohya_tensors(state_dict: Mapping[str, Tensor], pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return LoRA factors under kohya's names, with an alpha equal to the rank: the factors count as they are.

    All layers get the largest rank, smaller ones by zeros, because diffusers reads one alpha for all. For Stable
    Diffusion XL kohya's scripts, and so their files, have the original code's names for the denoiser's layers; for 1.x
    and 2.x they have diffusers'. Transformers have the names that their families declare.

    Args:
        state_dict: Factors as `Edit.as_lora` gives them.
        pipe: The base.

    Raises:
        InputError: A layer that such files have no name for.
    """
    if backbone_of(pipe).lora_prefix == _COMFY:
        return {f"{_COMFY}{key.partition('.')[2]}": factor for key, factor in state_dict.items()}
    tensors: dict[str, Tensor] = {}
    rank = rank_of(state_dict)
    for module in (key.removesuffix(_DOWN) for key in state_dict if key.endswith(_DOWN)):
        down, up = state_dict[f"{module}{_DOWN}"], state_dict[f"{module}.lora_B.weight"]
        name, lacking = _layer(module, pipe), rank - len(down)
        kernel = [0, 0] * (down.ndim - 2)
        tensors[f"{name}.lora_down.weight"] = F.pad(down, [*kernel, 0, 0, 0, lacking])
        tensors[f"{name}.lora_up.weight"] = F.pad(up, [*kernel, 0, lacking])
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    return tensors


def rank_of(state_dict: Mapping[str, Tensor]) -> int:
    """Return the largest rank of LoRA factors."""
    return max(len(factor) for key, factor in state_dict.items() if key.endswith(_DOWN))


def _layer(module: str, pipe: DiffusionPipeline) -> str:
    part, _, name = module.partition(".")
    backbone = backbone_of(pipe)
    if prefix := backbone.lora_prefix:
        name = name if prefix == _DIFFUSERS else backbone.original_names.get(name, name)
        return f"{prefix}{name.replace('.', '_')}"
    is_sdxl = backbone.family == "sdxl"
    if part == "unet":
        name = denoiser_name(name, unwrapped(pipe.unet).config) if is_sdxl else name
        return f"lora_unet_{name.replace('.', '_')}"
    if name == "text_projection":
        raise InputError(f"kohya: expected layers that such a file has names for, got {module!r}. Use --format edit.")
    prefix = {"text_encoder": "lora_te1" if is_sdxl else "lora_te", "text_encoder_2": "lora_te2"}[part]
    return f"{prefix}_text_model_{name.removeprefix('text_model.').replace('.', '_')}"
