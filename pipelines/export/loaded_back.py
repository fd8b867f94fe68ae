"""Load an exported LoRA back, as a user will, and compare what it changes: a loader that ignores a key says nothing."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.storage import is_stored
from erasure.edits.changes import exchanged
from erasure.errors import ExportError, InputError, reason
from erasure.loading.components import without_warnings
from erasure.sampling import noise

_ADAPTER = "loaded_back"
_SHARE = 0.02  # of the distance of two predictions; a file of half the rank misses more
_ROUNDING = 256  # of float32, through the layers of a denoiser
_TOLERANCE = 1e-4  # of a change's norm; the factors are float32, and some converters pad them
_REFUSALS = (ValueError, KeyError, RuntimeError, AttributeError, IndexError)
_FACTOR = re.compile(r"\.(lora_.*|alpha)$")
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def check_loader(pipe: DiffusionPipeline) -> None:
    """Raise InputError if diffusers loads no LoRA into the pipeline."""
    backbone = backbone_of(pipe)
    if "lora" not in backbone.abilities:
        raise InputError(
            f"lora: expected a pipeline that diffusers loads a LoRA into, got {backbone.family}."
            " Use --format pipeline or edit."
        )


def check_loads(
    pipe: DiffusionPipeline,
    file: Path,
    factors: Mapping[str, Tensor],
    prompts: Sequence[str] = ("",),
    form: str = "lora",
) -> None:
    """Refuse a LoRA file that does not change the model as its factors do, once the pipeline has loaded it.

    Each layer's change is compared, and a prediction with that of the weights to which the factors were added. Of a
    model whose weights stay on the disk the changed layers alone are run. The pipeline is as before afterwards.

    Args:
        pipe: The base, with nothing loaded.
        file: The file.
        factors: The factors, by diffusers' names for layers.
        prompts: Prompts of the predictions that are compared, such as the removed concepts.
        form: Format of the file, for messages.

    Raises:
        ExportError: The loader refuses the file, or ignores a part of it.
    """
    loader, stored = cast("Any", pipe), is_stored(pipe)
    changes = _changes(factors)
    expected = None if stored else (_prediction(pipe, prompts, {}), _prediction(pipe, prompts, changes))
    parts = tuple({module.partition(".")[0]: None for module in changes}) if stored else ()
    with backbone_of(pipe).weights_present(*parts):
        try:
            with without_warnings():  # that a text encoder, which has none, was given no layers
                loader.load_lora_weights(file.parent, weight_name=file.name, adapter_name=_ADAPTER)
        except _REFUSALS as error:
            raise _differs(pipe, _unread(pipe, file, changes) or f"an error ({reason(error)})", form) from error
        try:
            for module, change in changes.items():
                missed = float((_loaded(pipe, module, change) - change).norm())
                if missed > _TOLERANCE * float(change.norm()):
                    raise _differs(pipe, f"another change of {module!r}", form)
                if stored and not _runs(pipe, module, change):
                    raise _differs(pipe, f"another output of {module!r}", form)
            if expected is not None and not is_near(_prediction(pipe, prompts, {}), *expected):
                raise _differs(pipe, "another prediction than that of the edited weights", form)
        finally:
            loader.unload_lora_weights()


def _changes(factors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the change of each layer by its full name, float64 and flat."""
    modules = (key.removesuffix(_DOWN) for key in factors if key.endswith(_DOWN))
    return {
        module: factors[f"{module}{_UP}"].flatten(1).double() @ factors[f"{module}{_DOWN}"].flatten(1).double()
        for module in modules
    }


def _loaded(pipe: DiffusionPipeline, module: str, change: Tensor) -> Tensor:
    """Return the change that the pipeline's adapter makes to a layer; zeros where it makes none."""
    part, _, inner = module.partition(".")
    layer = cast("Any", backbone_of(pipe).component(part).get_submodule(inner))
    if _ADAPTER not in getattr(layer, "lora_A", {}):
        return torch.zeros_like(change)
    return layer.get_delta_weight(_ADAPTER).detach().flatten(1).to("cpu", torch.float64)


@torch.no_grad()
def prediction(pipe: DiffusionPipeline, prompts: Sequence[str]) -> Tensor:
    """Return the denoiser's output for prompts at a middle timestep."""
    backbone = backbone_of(pipe)
    conditioning = backbone.encode(prompts)
    generators = [torch.Generator().manual_seed(0)] * len(prompts)
    timestep = torch.tensor(500, device=backbone.device)
    output = backbone.predict(noise(generators, backbone.latent_shape()), timestep, conditioning)
    return output.to("cpu", torch.float64)


@torch.no_grad()
def _prediction(pipe: DiffusionPipeline, prompts: Sequence[str], changes: Mapping[str, Tensor]) -> Tensor:
    """Return the denoiser's output for prompts with changes added to the weights."""
    backbone = backbone_of(pipe)
    weights = backbone.parameters(lambda name: name.removesuffix(".weight") in changes)
    added = {
        name: (weight.double() + changes[name.removesuffix(".weight")].to(weight.device).view_as(weight)).to(weight)
        for name, weight in weights.items()
    }
    with exchanged(weights, added):
        return prediction(pipe, prompts)


def is_near(output: Tensor, plain: Tensor, expected: Tensor) -> bool:
    """Return True if an output is the expected one, by a share of the distance to the plain one, but for rounding."""
    rounding = _ROUNDING * torch.finfo(torch.float32).eps
    missed, moved, size = (float(each.norm()) for each in (output - expected, expected - plain, expected))
    return missed <= _SHARE * moved + rounding * size


@torch.no_grad()
def _runs(pipe: DiffusionPipeline, module: str, change: Tensor) -> bool:
    """Return True if a linear layer with the adapter gives the output of its changed weight."""
    part, _, inner = module.partition(".")
    layer = cast("Any", backbone_of(pipe).component(part).get_submodule(inner))
    inputs = torch.randn(4, change.shape[1], generator=torch.Generator().manual_seed(0))
    plain = layer.base_layer(inputs).double()
    return is_near(layer(inputs).double(), plain, plain + inputs.double() @ change.T)


def _unread(pipe: DiffusionPipeline, file: Path, changes: Mapping[str, Tensor]) -> str:
    """Return the number of a file's layers that the loader takes for none of those that change; "" for 0."""
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, factor in load_file(file).items():
        layers[_FACTOR.sub("", key)][key] = factor
    unread = [layer for layer, factors in layers.items() if not _modules(pipe, factors) <= changes.keys()]
    return f"{len(unread)} of {len(layers)} layers that it cannot read, such as {unread[0]!r}" if unread else ""


def _modules(pipe: DiffusionPipeline, factors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of layers that the loader reads in a part of a file, {""} where it fails."""
    try:
        read = cast("Any", type(pipe)).lora_state_dict(dict(factors))
    except _REFUSALS:
        return {""}
    tensors = read[0] if isinstance(read, tuple) else read  # of a UNet with the alphas
    return {_FACTOR.sub("", key) for key in tensors}


def _differs(pipe: DiffusionPipeline, got: str, form: str) -> ExportError:
    other = "lora" if form == "kohya" else "pipeline"
    return ExportError(
        f"{form}: expected {type(pipe).__name__} to load what was written, got {got}. Use --format {other} or edit."
    )
