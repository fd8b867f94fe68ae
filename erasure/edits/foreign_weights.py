"""Edits by other code: whole new weights under bare parameter names, as the code of UCE and ESD saves them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..backbones import backbone_of
from ..concept import Concept
from ..errors import InputError
from .changes import Change, DenseChange
from .edit import Edit
from .metadata import EditMetadata
from .weight_edit import WeightEdit

METHOD = "imported"


def is_own(path: str | Path) -> bool:
    """Return True if a file is an edit of this library.

    Raises:
        InputError: It is no safetensors file.
    """
    with _opened(Path(path)) as file:
        return (file.metadata() or {}).get("format") in Edit.known_formats()


def import_edit(path: str | Path, pipe: DiffusionPipeline, concepts: Sequence[Concept]) -> WeightEdit:
    """Return the edit that takes a model to the weights of a file of other code.

    The file holds new weights by the names of the denoiser's parameters ("down_blocks.0.….attn2.to_k.weight", as it is
    or after "unet."), or of a text encoder's after its name. The edit is the difference to the model's, and applying it
    gives the file's weights to the last bit. Its metadata say "imported", the file's name and its sha256.

    Args:
        path: The file, safetensors; a pickle would be executed, and is refused.
        pipe: The base that the file was made for, which its authors must have named: the file does not.
        concepts: Removed concepts, which the file does not say either.

    Raises:
        InputError: It is no such file, or not of this model.
    """
    path = Path(path)
    if not concepts:
        raise InputError("load-edit: expected what was removed, which the file does not say, got nothing. Name it.")
    with _opened(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    backbone = backbone_of(pipe)
    parameters = backbone.parameters(lambda name: True)
    changes: dict[str, Change] = {}
    for key, weight in weights.items():
        name, parameter = _parameter(path, key, weight, parameters)
        if (change := _difference(parameter.data, weight)) is not None:
            changes[name] = change
    if not changes:
        raise InputError(f"{path}: expected weights that differ from the model's, got none. Check the base.")
    settings = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return WeightEdit(changes=changes, metadata=EditMetadata.of(METHOD, settings, backbone, concepts, 0))


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise InputError(f"load-edit: expected the path of a file, got {str(path)!r}. Check the path.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"load-edit: expected a safetensors file, got {str(path)!r} ({error}). A pickle (.pt, .bin) is not opened."
        ) from None


def _parameter(
    path: Path, key: str, weight: Tensor, parameters: Mapping[str, nn.Parameter]
) -> tuple[str, nn.Parameter]:
    for name in (key, f"unet.{key}"):
        if name in parameters:
            if parameters[name].shape != weight.shape:
                expected = tuple(parameters[name].shape)
                raise InputError(
                    f"{path}: expected {key!r} of shape {expected}, got {tuple(weight.shape)}."
                    " Give the model that it was made for."
                )
            return name, parameters[name]
    raise InputError(
        f"{path}: expected names of the model's parameters, got {key!r}. Give the model that it was made for."
    )


def _difference(old: Tensor, new: Tensor) -> DenseChange | None:
    """Return the change from the old weight to the new one, in float32 where that is exact; None if they are equal."""
    target = new.to(old.device, old.dtype)
    if torch.equal(target, old):
        return None
    exact = new.to(old.device).double() - old.double()
    short = exact.float()
    suffices = torch.equal((old.double() + short.double()).to(old.dtype), target)
    return DenseChange(delta=(short if suffices else exact).cpu())
