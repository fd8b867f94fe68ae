"""A model whose weights stay in their files: enough to fit the layers that read text alone, in little memory.

It is a pipeline of diffusers whose modules have names and shapes and no weights. A text encoder is read when prompts
are encoded, and let go of before the next one. The denoiser is never read whole.
"""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..io.tensor_files import StoredTensor, stored_tensors
from .conditioning import Conditioning
from .loaded import other_names, spread_step
from .sd import Read, StableDiffusion
from .sdxl import StableDiffusionXL
from .weight_files import weight_files

_WHOLE_MODEL = "Leave --low-memory out."


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The files of a model's weights: those that it is loaded from.

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
            files = weight_files(self.folder / part)
            self._parts[part] = {name: tensor for file in files for name, tensor in stored_tensors(file).items()}
        return self._parts[part]

    def parameter(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return the tensor of a parameter by its full name.

        Raises:
            InputError: There is none, or one of another shape.
        """
        part, _, key = name.partition(".")
        stored = self.of(part)
        tensor = next((stored[each] for each in other_names(key) if each in stored), None)
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
        """Return True for a pipeline of `load_stored` that has the family's parts."""
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


def is_stored(pipe: DiffusionPipeline) -> bool:
    """Return True if a pipeline's weights stay in their files."""
    return isinstance(getattr(pipe, "stored", None), StoredWeights)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
