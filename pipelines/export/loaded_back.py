"""Load an exported LoRA back, as a user will, and compare what it changes: a loader that ignores a key says nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.errors import InputError, reason

_ADAPTER = "loaded_back"
_TOLERANCE = 1e-4  # of a change's norm; the factors are float32, and some converters pad them
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def check_loader(pipe: DiffusionPipeline) -> None:
    """Raise InputError if diffusers loads no LoRA into the pipeline."""
    backbone = backbone_of(pipe)
    if "lora" not in backbone.abilities:
        raise InputError(
            f"lora: expected a pipeline that diffusers loads a LoRA into, got {backbone.family}."
            " Use --format pipeline or edit."
        )


def check_loads(pipe: DiffusionPipeline, file: Path, factors: Mapping[str, Tensor]) -> None:
    """Refuse a LoRA file that does not change each layer as its factors do, once the pipeline has loaded it.

    The pipeline is as before afterwards.

    Args:
        pipe: The base, with nothing loaded.
        file: The file.
        factors: The factors, by diffusers' names for layers.

    Raises:
        InputError: The loader refuses the file, or ignores a part of it.
    """
    loader = cast("Any", pipe)
    try:
        loader.load_lora_weights(file.parent, weight_name=file.name, adapter_name=_ADAPTER)
    except (ValueError, KeyError, RuntimeError, AttributeError, IndexError) as error:
        raise _differs(pipe, f"an error ({reason(error)})") from error
    try:
        for module in (key.removesuffix(_DOWN) for key in factors if key.endswith(_DOWN)):
            change = factors[f"{module}{_UP}"].flatten(1).double() @ factors[f"{module}{_DOWN}"].flatten(1).double()
            missed = float((_loaded(pipe, module, change) - change).norm())
            if missed > _TOLERANCE * float(change.norm()):
                raise _differs(pipe, f"another change of {module!r}")
    finally:
        loader.unload_lora_weights()


def _loaded(pipe: DiffusionPipeline, module: str, change: Tensor) -> Tensor:
    """Return the change that the pipeline's adapter makes to a layer; zeros where it makes none."""
    part, _, inner = module.partition(".")
    layer = cast("Any", backbone_of(pipe).component(part).get_submodule(inner))
    if _ADAPTER not in getattr(layer, "lora_A", {}):
        return torch.zeros_like(change)
    return layer.get_delta_weight(_ADAPTER).detach().flatten(1).to("cpu", torch.float64)


def _differs(pipe: DiffusionPipeline, got: str) -> InputError:
    kind = type(pipe).__name__
    return InputError(f"lora: expected {kind} to load what was written, got {got}. Use --format pipeline or edit.")
