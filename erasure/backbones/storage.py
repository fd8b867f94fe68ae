"""A model whose weights stay in their files: enough to fit the layers that read text alone, in little memory.

It is a pipeline of diffusers whose modules have names and shapes and no weights. A text encoder is read when prompts
are encoded, and let go of before the next one. The denoiser is never read whole.
"""

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError, reason
from ..io.tensor_files import StoredTensor, stored_tensors
from .conditioning import Conditioning
from .loaded import spread_step
from .sd import Read, StableDiffusion
from .sdxl import StableDiffusionXL

_WHOLE_MODEL = "Leave --low-memory out."
# Parts of which names and shapes are needed.
_SKETCHED = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The files of a model's weights: the main ones, those that it is loaded from where no variant is named.

    Attributes:
        folder: The model's, in diffusers' layout.
    """

    folder: Path
    _parts: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, init=False, repr=False)

    def of(self, part: str) -> Mapping[str, StoredTensor]:
        """Return a component's tensors by their names in its files.

        Raises:
            InputError: A file is missing or damaged.
        """
        if part not in self._parts:
            files = _main_files(self.folder / part)
            self._parts[part] = {name: tensor for file in files for name, tensor in stored_tensors(file).items()}
        return self._parts[part]

    def parameter(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return the tensor of a parameter by its full name.

        Raises:
            InputError: There is none, or one of another shape.
        """
        part, _, key = name.partition(".")
        stored = self.of(part)
        # transformers' files may call a text encoder's parameters otherwise than the module does.
        names = (key, key.removeprefix("text_model."), f"text_model.{key}")
        tensor = next((stored[each] for each in names if each in stored), None)
        if tensor is None or tensor.shape != shape:
            got = "none" if tensor is None else f"one of shape {tensor.shape}"
            raise InputError(
                f"model: expected the parameter {name!r} of shape {shape} in {str(self.folder / part)!r}, got {got}."
                " Save the model again."
            )
        return tensor


@dataclass(frozen=True, eq=False)
class StoredStableDiffusion(StableDiffusion):
    """A backbone of Stable Diffusion 1.x and 2.x whose weights stay in their files."""

    covered: ClassVar[tuple[str, ...]] = ()  # no family of its own

    @classmethod
    def covers(cls, pipe: DiffusionPipeline) -> bool:
        """Return True for a pipeline of `stored_model` that has the family's parts."""
        return is_stored(pipe) and super().covers(pipe)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def parameters(self, which: Callable[[str], bool]) -> dict[str, nn.Parameter]:
        """Return no parameters, where none are asked for; there are none with values to give.

        Raises:
            InputError: Some are.
        """
        parameters = super().parameters(which)
        if parameters:
            raise InputError(
                f"model: expected one in memory, got files, for {next(iter(parameters))!r}. {_WHOLE_MODEL}"
            )
        return parameters

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Raise InputError: there is no denoiser in memory."""
        raise InputError(f"model: expected one in memory, got files, to predict with. {_WHOLE_MODEL}")

    def _spread_values(self, name: str, weight: Tensor) -> Tensor:
        stored = self.pipe.stored.parameter(name, tuple(weight.shape))
        # By way of float32, in which a model is loaded, so that no type is rounded otherwise than there.
        return stored.every(spread_step(weight.numel())).to(torch.float32).to(torch.float16)

    def _read_by(self, name: str, read: Callable[[PreTrainedModel], Read]) -> Read:
        sketch = self.text_encoders()[name]
        # Given its tensors and not its file, which would be mapped into memory beside what is made of it.
        tensors = {key: _widened(stored.read()) for key, stored in self.pipe.stored.of(name).items()}
        loaded = type(sketch).from_pretrained(None, config=sketch.config, state_dict=tensors, dtype=torch.float32)
        del tensors
        try:
            return read(loaded.eval())
        finally:
            del loaded
            gc.collect()  # before the next encoder is read


@dataclass(frozen=True, eq=False)
class StoredStableDiffusionXL(StoredStableDiffusion, StableDiffusionXL):
    """A backbone of Stable Diffusion XL whose weights stay in their files."""


def stored_model(folder: Path) -> DiffusionPipeline:
    """Return a pipeline whose weights stay in the files of a folder; `backbone_of` knows it.

    Raises:
        InputError: The folder is not a model, or has weights that are no safetensors files.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = {name: kind for name, value in index.items() if (kind := _module_class(value)) is not None}
        for name in parts:
            _check_stored(folder / name)
        components = {name: _sketch(parts[name], folder / name) if name in _SKETCHED else None for name in parts}
        pipe = DiffusionPipeline.from_pretrained(folder, **components, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"model: expected a complete diffusers model in {str(folder)!r}, got {reason(error)}"
        ) from error
    pipe.stored = StoredWeights(folder)
    return pipe


def is_stored(pipe: DiffusionPipeline) -> bool:
    """Return True if a pipeline's weights stay in their files."""
    return isinstance(getattr(pipe, "stored", None), StoredWeights)


def _module_class(value: object) -> type[nn.Module] | None:
    """Return the class of a component with weights that an index names; None for what else it says."""
    if not isinstance(value, list) or value[0] not in ("diffusers", "transformers"):
        # The safety checker's class is in a module of diffusers' pipelines.
        return nn.Module if isinstance(value, list) and str(value[1]).endswith("SafetyChecker") else None
    component_class = getattr(import_module(value[0]), value[1])
    return component_class if isinstance(component_class, type) and issubclass(component_class, nn.Module) else None


def _sketch(kind: Any, folder: Path) -> nn.Module:
    """Return a component with the names and shapes of its parameters and no values."""
    with torch.device("meta"):
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(folder, local_files_only=True)).eval()
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True)).eval()


def _check_stored(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"model: expected safetensors files in {str(folder)!r}, got none. {_WHOLE_MODEL}")


def _main_files(folder: Path) -> list[Path]:
    """Return the files of a component's weights that are of no variant, in order.

    Raises:
        InputError: There are none.
    """
    # Where there are both, diffusers takes the shards and transformers the single file.
    for name in (
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
    ):
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise InputError(
        f"model: expected main files of weights in {str(folder)!r}, got none. Variants alone are not a model: save it"
        " without one."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.parent / name for name in sorted(names)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index}: expected a list of shards, got something else. Copy it again.") from None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
