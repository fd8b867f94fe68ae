"""Learned instances in the formats that diffusers and others load: textual inversion, Custom Diffusion, LoRA."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save
from torch import Tensor

from ..backbones import backbone_of
from ..edits import LowRankChange, WeightEdit
from ..errors import InputError
from ..io.files import write_whole

CUSTOM_DIFFUSION_FILE = "pytorch_custom_diffusion_weights.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"


def textual_inversion(edit: WeightEdit) -> dict[str, dict[str, Tensor]]:
    """Return each new word's row as `pipe.load_textual_inversion` takes it, by file name.

    A model with two text encoders has two files a word; the one that ends in "-2" is loaded with `tokenizer_2` and
    `text_encoder_2`.
    """
    return {
        f"{_plain(token.text)}{part.removeprefix('text_encoder').replace('_', '-')}.safetensors": {token.text: row}
        for token in edit.tokens
        for part, row in token.rows.items()
    }


def custom_diffusion(edit: WeightEdit, pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """Return the changed keys and values as the denoiser's `load_attn_procs` takes them: whole weights, float32.

    In diffusers 0.42 that needs `_pipeline=pipe`: without, it reads the file and sets nothing.

    Args:
        edit: Edit of keys and values of cross-attention alone.
        pipe: Model of the edit, unchanged.

    Raises:
        InputError: The edit changes something else, or keys and values of some layers only.
    """
    backbone = backbone_of(pipe)
    expected = set(backbone.sites(reads="text"))
    if edit.changes.keys() != expected:
        odd = sorted(edit.changes.keys() ^ expected)[0]
        raise InputError(f"custom_diffusion: expected changes of all keys and values and of no more, got {odd!r}.")
    weights = backbone.parameters(edit.changes.__contains__)
    weights_by_key: dict[str, Tensor] = {}
    for name, change in edit.changes.items():
        weight = weights[name].detach().cpu()
        layer, _, projection = name.partition(".")[2].removesuffix(".weight").rpartition(".")
        weights_by_key[f"{layer}.processor.{projection}_custom_diffusion.weight"] = (
            weight.double() + change.of(weight)
        ).float()
    # The loader wants to hear of every layer; an empty tensor says that a layer is as it was.
    layers: Iterable[str] = getattr(backbone.denoiser, "attn_processors", ())
    plain = [name for name in layers if not any(key.startswith(f"{name}.") for key in weights_by_key)]
    return {**weights_by_key, **{name: torch.empty(0) for name in plain}}


def write_formats(edit: WeightEdit, pipe: DiffusionPipeline, folder: Path) -> list[Path]:
    """Write what was learned in the formats of others, and return the files."""
    files: dict[str, Mapping[str, Tensor]] = {**textual_inversion(edit)}
    if all(isinstance(change, LowRankChange) for change in edit.changes.values()):
        files[LORA_FILE] = edit.as_lora(pipe).state_dict
    else:
        files[CUSTOM_DIFFUSION_FILE] = custom_diffusion(edit, pipe)
    for name, tensors in files.items():
        write_whole(folder / name, save({key: value.contiguous() for key, value in tensors.items()}))
    return [folder / name for name in files]


def _plain(text: str) -> str:
    """Return a word's letters and digits, as a file may be called."""
    return "".join(character for character in text if character.isalnum() or character in "-_") or "token"
