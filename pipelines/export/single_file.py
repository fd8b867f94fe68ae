"""A single file of a base, as ComfyUI loads it, with the tensors of an edit changed under their original names.

diffusers converts such files one way alone. The layers that read a text's states are converted by their names, so an
edit of these alone is written without the converter.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.edits import WeightEdit
from erasure.errors import ExportError, InputError
from erasure.io.tensor_files import StoredTensor, rewrite_tensors, stored_tensors

# Beginnings of the denoiser's names in files of the denoiser alone, of a whole model, and of ComfyUI.
_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.")
_ROUNDING = 2**-7  # of a weight, relative: a file may be in bfloat16


def write_single_file(edit: WeightEdit, pipe: DiffusionPipeline, base_file: Path, to: Path) -> None:
    """Write a single file of the base with an edit in it; the other tensors are copied byte by byte.

    What was written is read again and compared with the edited weights.

    Args:
        edit: The edit, of layers that read a text's states.
        pipe: The base.
        base_file: File of the original release.
        to: The new file.

    Raises:
        InputError: The edit changes another parameter, or the file is not the base's or of another type.
        ExportError: What was read again differs.
    """
    stored = stored_tensors(base_file)
    names = {name: _name_in_file(name, pipe, stored, base_file) for name in sorted(edit.changes)}
    _check_base(names, pipe, stored, base_file)
    rewrite_tensors(base_file, to, {key: partial(edit.edited, name) for name, key in names.items()})
    written = stored_tensors(to)
    for name, key in names.items():
        before = stored[key].read()
        if not torch.equal(written[key].read(), edit.edited(name, before).to(before.dtype)):
            raise ExportError(f"single-file: expected the edited {key!r} in {str(to)!r}, got another. Write it again.")


def check_names(edit: WeightEdit, pipe: DiffusionPipeline) -> None:
    """Raise InputError if the original release has no such tensor for a parameter that an edit changes."""
    backbone = backbone_of(pipe)
    if not backbone.original_names:
        raise InputError(
            f"single-file: expected a family whose original names are known, got {backbone.family}."
            " Use --format pipeline, edit or lora."
        )
    for name in edit.changes:
        if name.partition(".")[2].removesuffix(".weight") not in backbone.original_names:
            raise InputError(
                f"single-file: expected a change of {', '.join(backbone.original_names)} alone, got one of {name!r}."
                " Use --format pipeline, edit or lora."
            )


def _name_in_file(name: str, pipe: DiffusionPipeline, stored: Mapping[str, StoredTensor], base_file: Path) -> str:
    original = backbone_of(pipe).original_names[name.partition(".")[2].removesuffix(".weight")]
    for prefix in _PREFIXES:
        if f"{prefix}{original}.weight" in stored:
            return f"{prefix}{original}.weight"
    raise InputError(
        f"single-file: expected the tensor '{original}.weight' in {str(base_file)!r}, got none."
        " Give the file of the original release that the base was made of."
    )


def _check_base(
    names: Mapping[str, str], pipe: DiffusionPipeline, stored: Mapping[str, StoredTensor], base_file: Path
) -> None:
    """Raise InputError if a tensor of the file is not the base's weight."""
    for name, weight in backbone_of(pipe).weights(names.__contains__).items():
        tensor = stored[names[name]]
        if tensor.type_name not in ("F64", "F32", "BF16", "F16"):
            raise InputError(
                f"single-file: expected unquantised weights in {str(base_file)!r}, got {tensor.type_name}."
                " Use --format lora."
            )
        if tensor.shape != tuple(weight.shape) or not _is_same(tensor.read(), weight):
            raise InputError(
                f"single-file: expected the weights of the ledger's base in {str(base_file)!r}, got others in"
                f" {names[name]!r}. Give the file that the base was made of."
            )


def _is_same(weight: Tensor, other: Tensor) -> bool:
    weight, other = weight.double(), other.to("cpu", torch.float64)
    return bool((weight - other).norm() <= _ROUNDING * other.norm())
