"""Edits by other code: whole new weights under bare parameter names, as the code of UCE and ESD saves them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..backbones import backbone_of
from ..backbones.loaded import is_finite, other_names
from ..backbones.usable import check_editable
from ..concept import Concept
from ..errors import InputError
from ..io.files import unusable
from .changes import Change, DenseChange
from .edit import Edit
from .metadata import EditMetadata
from .weight_edit import WeightEdit

METHOD = "imported"
_LORA = re.compile(r"\.lora_|\.lora\.|^lora_")


def is_own(path: str | Path) -> bool:
    """Return True if a file is an edit of this library, of whatever version.

    Raises:
        InputError: It is no safetensors file.
    """
    with _opened(Path(path)) as file:
        name = (file.metadata() or {}).get("format", "")
        return name in Edit.known_formats() or name.startswith("erasure-")


def import_edit(path: str | Path, pipe: DiffusionPipeline, concepts: Sequence[Concept]) -> WeightEdit:
    """Return the edit that takes a model to the weights of a file of other code.

    The file holds new weights by the names of the model's parameters, after the name of their component ("unet.",
    "text_encoder.") or without it, with or without "text_model." in those of a text encoder, and with the prefixes that
    torch.compile ("_orig_mod.") and data-parallel training ("module.") leave. The edit is the difference to the
    model's, and applying it gives the file's weights to the last bit. Its metadata say "imported", the file's name and
    its sha256.

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
    check_editable(backbone)
    parameters = backbone.parameters(lambda name: True)
    changes: dict[str, Change] = {}
    keys: dict[str, str] = {}
    for key, weight in weights.items():
        if key.endswith(".position_ids"):  # a constant that files of text encoders held once
            continue
        name = _parameter(path, key, weight, parameters)
        if (other := keys.setdefault(name, key)) != key:
            raise InputError(f"{path}: expected {name!r} once, got it as {other!r} and {key!r}. Take one of them out.")
        _check_numbers(path, key, weight)
        if (change := _difference(parameters[name].data, weight)) is not None:
            changes[name] = change
    if not changes:
        raise InputError(f"{path}: expected weights that differ from the model's, got none. Check the base.")
    settings = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return WeightEdit(changes=changes, metadata=EditMetadata.of(METHOD, settings, backbone, concepts, 0))


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise InputError(f"load-edit: expected the path of a file, got {str(path)!r}. Check the path.")
    if (got := unusable(path)) is not None:
        raise InputError(f"load-edit: expected a safetensors file in {str(path)!r}, got {got}")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"load-edit: expected a safetensors file, got {str(path)!r} ({error}). A pickle (.pt, .bin) is not opened."
        ) from None


def _parameter(path: Path, key: str, weight: Tensor, parameters: Mapping[str, nn.Parameter]) -> str:
    """Return the name of the parameter that a tensor of a file is.

    Raises:
        InputError: It is none, one of another shape, or may be one of several.
    """
    inner = key.removeprefix("module.").replace("_orig_mod.", "")
    components = dict.fromkeys(name.partition(".")[0] for name in parameters)
    paths = [inner, *(f"{component}.{inner}" for component in components)]
    names = (f"{part}.{name}" for part, _, rest in (p.partition(".") for p in paths) for name in other_names(rest))
    known = [name for name in dict.fromkeys(names) if name in parameters]
    if not known:
        remedy = "Merge the LoRA into its base" if _LORA.search(key) else "Give the model that it was made for"
        raise InputError(f"{path}: expected names of the model's parameters, got {key!r}. {remedy}.")
    fitting = [name for name in known if parameters[name].shape == weight.shape]
    if not fitting:
        expected = tuple(parameters[known[0]].shape)
        raise InputError(
            f"{path}: expected {key!r} of shape {expected}, got {tuple(weight.shape)}."
            " Give the model that it was made for."
        )
    if len(fitting) > 1:
        raise InputError(
            f"{path}: expected the name of one parameter, got {key!r}, which may be {' or '.join(map(repr, fitting))}."
            " Put the component before it."
        )
    return fitting[0]


def _check_numbers(path: Path, key: str, weight: Tensor) -> None:
    if not weight.is_floating_point():
        raise InputError(f"{path}: expected real numbers in {key!r}, got {weight.dtype}. Convert it.")
    if not is_finite(weight):
        raise InputError(f"{path}: expected finite weights, got inf or nan in {key!r}. Get the file again.")


def _difference(old: Tensor, new: Tensor) -> DenseChange | None:
    """Return the change from the old weight to the new one, in float32 where that is exact; None if they are equal."""
    target = new.to(old.device, old.dtype)
    if torch.equal(target, old):
        return None
    exact = new.to(old.device).double() - old.double()
    short = exact.float()
    suffices = torch.equal((old.double() + short.double()).to(old.dtype), target)
    return DenseChange(delta=(short if suffices else exact).cpu())
