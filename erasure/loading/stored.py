"""Models whose weights stay in their files."""
# pyright: reportMissingTypeStubs=false
# accelerate has no types.

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from ..backbones.storage import StoredWeights
from ..backbones.weight_files import weight_files
from ..errors import InputError
from .components import assembled, check_files, check_whole, module_classes, one_line
from .configs import check_configs

# Beginnings of the names of components of which names and shapes are needed.
_SKETCHED = ("unet", "transformer", "vae", "text_encoder")


def stored_model(folder: Path) -> DiffusionPipeline:
    """Return a pipeline whose weights stay in the files of a folder; `backbone_of` knows it.

    Raises:
        InputError: The folder is not a model, lacks a weight, or has weights that are no safetensors files.
    """
    check_configs(folder)
    classes = module_classes(folder)
    for name in classes:
        _check_stored(folder / name)
    sketches = {
        name: _sketch(kind, folder / name) if name.startswith(_SKETCHED) else None for name, kind in classes.items()
    }
    stored = StoredWeights(folder)
    for name, sketch in sketches.items():
        if isinstance(sketch, ModelMixin):  # of an encoder the weights that are read are looked for as they are
            _check_sketch(name, sketch, stored)
    pipe = assembled(folder, sketches, torch.float32)
    pipe.stored = stored
    return pipe


def _check_sketch(name: str, sketch: nn.Module, stored: StoredWeights) -> None:
    """Refuse files that lack a weight of the class that is to have them, or have one of another shape.

    Raises:
        InputError: They do.
    """
    names = stored.file_names(name, sketch)
    parameters = {key: tuple(parameter.shape) for key, parameter in sketch.named_parameters()}
    differing = {"missing_keys": parameters.keys() - names, "unexpected_keys": names.keys() - sketch.state_dict()}
    check_whole(name, stored.folder / name, differing)
    for key, shape in parameters.items():
        stored.parameter(f"{name}.{key}", shape, sketch)


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
