"""Models whose weights stay in their files."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from torch import nn

from ..backbones.storage import StoredWeights
from ..backbones.weight_files import weight_files
from ..errors import InputError
from .components import assembled, check_files, module_classes, one_line
from .config_numbers import check_numbers

# Beginnings of the names of components of which names and shapes are needed.
_SKETCHED = ("unet", "transformer", "vae", "text_encoder")


def stored_model(folder: Path) -> DiffusionPipeline:
    """Return a pipeline whose weights stay in the files of a folder; `backbone_of` knows it.

    Raises:
        InputError: The folder is not a model, or has weights that are no safetensors files.
    """
    check_numbers(folder)
    classes = module_classes(folder)
    for name in classes:
        _check_stored(folder / name)
    sketches = {
        name: _sketch(kind, folder / name) if name.startswith(_SKETCHED) else None for name, kind in classes.items()
    }
    pipe = assembled(folder, sketches, torch.float32)
    pipe.stored = StoredWeights(folder)
    return pipe


def _sketch(kind: Any, folder: Path) -> nn.Module:
    """Return a component with the names and shapes of its parameters and no values."""
    with one_line(folder):
        if hasattr(kind, "load_config"):
            with torch.device("meta"):
                return kind.from_config(kind.load_config(folder, local_files_only=True)).eval()
        # What encoders compute when they are made, such as frequencies of positions, is in no file.
        with init_empty_weights(include_buffers=False):
            encoder = kind(kind.config_class.from_pretrained(folder, local_files_only=True)).eval()
        encoder.tie_weights()
        return encoder


def _check_stored(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")) or any(file.suffix != ".safetensors" for file in weight_files(folder)):
        raise InputError(f"model: expected safetensors files in {str(folder)!r}, got none. Leave --low-memory out.")
    check_files(folder)
