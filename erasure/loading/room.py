"""Check that a model's weights fit into a device's memory, before any is read."""

from math import prod
from pathlib import Path

import torch

from ..backbones.weight_files import has_weights, weight_files
from ..errors import InputError
from ..io.memory import free_memory, in_words
from ..io.tensor_files import stored_tensors
from .components import module_classes

_FLOAT32 = 4  # bytes, in which a model is loaded


def check_weights_fit(name: str, device: str) -> None:
    """Refuse a folder whose weights, in float32, are larger than the free memory of a device.

    A model that is no folder, or whose weights are no safetensors files, is not looked at.

    Raises:
        InputError: They are; the error names the ways that need less.
    """
    folder = Path(name)
    if not (folder / "model_index.json").is_file():
        return
    files = [
        file for part in module_classes(folder) if has_weights(folder / part) for file in weight_files(folder / part)
    ]
    if not all(file.suffix == ".safetensors" and file.is_file() for file in files):
        return
    numbers = sum(prod(tensor.shape) for file in files for tensor in stored_tensors(file).values())
    free = free_memory(torch.device(device))
    if free is not None and numbers * _FLOAT32 > free:
        raise InputError(
            f"model: expected {in_words(numbers * _FLOAT32)} free on {device} for the weights of {name!r} in float32,"
            f" got {in_words(free)}. Remove by a closed form such as uce with --low-memory, or use a larger device."
        )
