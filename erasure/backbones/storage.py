"""A model whose weights stay in their files: enough to fit the layers that read text alone, in little memory.

It is a pipeline of diffusers whose modules have names and shapes and no weights. Those of a text encoder are read layer
by layer while prompts are encoded. The denoiser is never read whole.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError
from ..io.tensor_files import StoredTensor, stored_tensors
from .conditioning import Conditioning
from .loaded import LoadedModel, spread_step
from .streaming import blocks_of, file_names, streamed
from .weight_files import weight_files

QUANTISED = (
    "Remove from the unquantised model with --low-memory, and load here what `erasure export --format lora` makes of it"
)
"""Way to a removal from a model whose weights are quantised."""

_WHOLE_MODEL = "Leave --low-memory out."
_UNQUANTISED = ("F64", "F32", "BF16", "F16")  # names of types in safetensors files


@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The files of a model's weights: those that it is loaded from.

    Attributes:
        folder: The model's, in diffusers' layout.
    """

    folder: Path
    _parts: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, init=False, repr=False)
    _file_names: dict[str, dict[str, str]] = field(default_factory=dict, init=False, repr=False)

    def of(self, part: str) -> Mapping[str, StoredTensor]:
        """Return a component's tensors by their names in its files.

        Raises:
            InputError: A file is missing or damaged.
        """
        if part not in self._parts:
            files = weight_files(self.folder / part)
            self._parts[part] = {name: tensor for file in files for name, tensor in stored_tensors(file).items()}
        return self._parts[part]

    def parameter(self, name: str, shape: tuple[int, ...], component: nn.Module) -> StoredTensor:
        """Return the tensor of a parameter of a component by its full name.

        Raises:
            InputError: There is none, or one of another shape, or it is quantised.
        """
        part, _, key = name.partition(".")
        stored = self.of(part)
        tensor = stored.get(self.file_names(part, component).get(key, ""))
        if tensor is not None and tensor.type_name not in _UNQUANTISED:
            raise InputError(
                f"model: expected unquantised weights in {str(tensor.path)!r}, got {tensor.type_name} in {name!r}."
                f" {QUANTISED}."
            )
        if tensor is None or tensor.shape != shape:
            got = "none" if tensor is None else f"one of shape {tensor.shape}"
            raise InputError(
                f"model: expected the parameter {name!r} of shape {shape} in {str(self.folder / part)!r}, got {got}."
                " Save the model again."
            )
        return tensor

    def file_names(self, part: str, component: nn.Module) -> Mapping[str, str]:
        """Return the names in a component's files by those of its parameters."""
        if part not in self._file_names:
            self._file_names[part] = file_names(component, self.of(part))
        return self._file_names[part]


@dataclass(frozen=True, eq=False)
class StoredModel(LoadedModel):
    """Base of backbones whose weights stay in their files; see `on_disk`."""

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

    def weights(self, which: Callable[[str], bool]) -> dict[str, Tensor]:
        named = ((name, parameter) for name, parameter in self._named_parameters() if which(name))
        return {name: self._stored(name, parameter).read().to(torch.float32) for name, parameter in named}

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Raise InputError: there is no denoiser in memory."""
        raise InputError(f"model: expected one in memory, got files, to predict with. {_WHOLE_MODEL}")

    def _spread_values(self, name: str, weight: Tensor) -> Tensor:
        # By way of float32, in which a model is loaded, so that no type is rounded otherwise than there.
        values = self._stored(name, weight).every(spread_step(weight.numel()))
        return values.to(torch.float32).to(torch.float16)

    def _stored(self, name: str, weight: Tensor) -> StoredTensor:
        part = name.partition(".")[0]
        return self.pipe.stored.parameter(name, tuple(weight.shape), self.component(part))

    @contextmanager
    def weights_present(self, *names: str) -> Generator[torch.device | None]:
        with ExitStack() as stack:
            for name in names:
                part, _, path = name.partition(".")
                component = self.component(part)
                module = component.get_submodule(path)
                shapes = {inner: tuple(p.shape) for inner, p in module.named_parameters()}
                read = partial(self._tensor_in, name, shapes)
                stack.enter_context(streamed(module, read, unread=self._unread(part, module)))
            yield self.device

    def _tensor_in(self, name: str, shapes: Mapping[str, tuple[int, ...]], inner: str) -> StoredTensor:
        """Return the tensor of a parameter from its name inside a module of that full name."""
        component = self.component(name.partition(".")[0])
        return self.pipe.stored.parameter(f"{name}.{inner}", shapes[inner], component)

    def _unread(self, part: str, module: nn.Module) -> list[nn.Module]:
        """Return the layers of a text encoder whose output nothing reads, and its table of scores of words."""
        if not isinstance(module, PreTrainedModel):
            return []
        scores = module.get_output_embeddings()
        last = self.last_layers().get(part)
        return [*([] if last is None else blocks_of(module)[last:]), *([] if scores is None else [scores])]


@cache
def on_disk(family: type[LoadedModel]) -> type[LoadedModel]:
    """Return the backbones of a family whose weights stay in their files."""
    kind = type(f"Stored{family.__name__}", (StoredModel, family), {"covered": ()})
    return dataclass(frozen=True, eq=False)(kind)  # so that the family's checks are made here too


def is_stored(pipe: DiffusionPipeline) -> bool:
    """Return True if a pipeline's weights stay in their files."""
    return isinstance(getattr(pipe, "stored", None), StoredWeights)
