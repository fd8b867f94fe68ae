"""The files of a component's weights in diffusers' layout: the main ones, or else those of a variant."""

import json
import re
from pathlib import Path

from ..errors import InputError

# The main file has no variant; of those that have one, the first here is taken.
_PREFERRED = ("fp32", "bf16", "fp16")
_NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))??(?:-\d+-of-\d+)?(?:\.(?P<older>\w+))?"
    r"\.(?:safetensors|bin)"
)


def variant_of(folder: Path) -> str | None:
    """Return the variant that a component is loaded by; None is the main files."""
    variants = _variants(folder)
    if "" in variants or not variants:
        return None
    return next((name for name in _PREFERRED if name in variants), min(variants))


def has_weights(folder: Path) -> bool:
    """Return True if a component has files of weights, main ones or those of a variant."""
    return bool(_variants(folder))


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a component's weights are loaded from, in order.

    Raises:
        InputError: There are none, or a list of shards is damaged.
    """
    variant = variant_of(folder)
    part = "" if variant is None else f".{variant}"
    # Where there are both, diffusers takes the shards and transformers the single file.
    for name in (
        f"diffusion_pytorch_model.safetensors.index{part}.json",
        f"diffusion_pytorch_model{part}.safetensors",
        f"model{part}.safetensors",
        f"model.safetensors.index{part}.json",
        f"diffusion_pytorch_model.bin.index{part}.json",
        f"diffusion_pytorch_model{part}.bin",
        f"pytorch_model{part}.bin",
        f"pytorch_model.bin.index{part}.json",
    ):
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise InputError(
        f"model: expected main files of weights in {str(folder)!r}, or those of a variant, got none."
        " Save or download the model again."
    )


def _variants(folder: Path) -> set[str]:
    """Return the variants of a component's weights, "" for the main files."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    matches = (match for name in names if (match := _NAME.fullmatch(name)))
    return {match["variant"] or match["older"] or "" for match in matches}


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: expected a list of shards, got something else. Copy it again.") from None
