"""Loading of a model's components from a folder, with every weight there and every number finite."""
# pyright: reportUnknownMemberType=false
# Methods of diffusers take untyped keyword arguments.

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from ..backbones.loaded import is_finite
from ..backbones.weight_files import has_weights, variant_of, weight_files
from ..errors import ErasureError, InputError, reason
from ..io.files import unusable
from ..io.tensor_files import StoredTensor, stored_tensors
from ..io.text import shortened
from .configs import check_configs

_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32")  # I64 and BOOL are places and masks
_COMPUTED_IN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_folder(folder: Path, dtype: torch.dtype, present: Mapping[str, Any] | None = None) -> DiffusionPipeline:
    """Return the pipeline of a folder in diffusers' layout.

    A component whose weights are those of a variant alone ("fp16") is loaded from them.

    Args:
        folder: The folder.
        dtype: Precision of the weights.
        present: Components that are in memory already, which are not loaded; None for none.

    Raises:
        InputError: A component cannot be loaded, is described by an absurd number, or a weight is missing, of another
            shape or not finite.
    """
    check_configs(folder)
    parts = dict(present or {})
    for name, kind in module_classes(folder).items():
        if name not in parts:
            parts[name] = load_module(name, kind, folder / name, dtype)
    return assembled(folder, parts, dtype)


def assembled(folder: Path, present: Mapping[str, Any], dtype: torch.dtype) -> DiffusionPipeline:
    """Return the pipeline of a folder with the components that are present; the others are loaded from the folder.

    Raises:
        InputError: A component cannot be loaded.
    """
    parts: dict[str, Any] = dict(present)
    for name, value in _index_of(folder).items():
        _check_content(folder / name)
        kind = _class_of(value)
        if name not in parts and hasattr(kind, "from_pretrained"):
            with one_line(folder / name), without_warnings():
                parts[name] = kind.from_pretrained(folder / name, local_files_only=True)
    with one_line(folder), without_warnings():
        # Of the class itself: the general one loads again what this has as optional, such as Wan's transformer.
        return _pipeline_class(folder).from_pretrained(folder, **parts, dtype=dtype, local_files_only=True)


def _pipeline_class(folder: Path) -> type[DiffusionPipeline]:
    """Return the class of a folder's pipeline; the general one where diffusers has none of that name."""
    index = cast("dict[str, Any]", DiffusionPipeline.load_config(folder, local_files_only=True))
    return getattr(diffusers, index["_class_name"], DiffusionPipeline)


@contextmanager
def one_line(folder: Path) -> Generator[None]:
    """Turn any error of other libraries that read a folder into one line.

    Raises:
        InputError: The block raised an error.
    """
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"model: expected the packages that {str(folder)!r} needs, got {_sentence(error)}. Install them by pip."
        ) from error
    except Exception as error:  # the libraries of formats and tokenizers raise any, and Exception itself
        raise InputError(
            f"model: expected a complete diffusers model in {str(folder)!r}, got {_sentence(error)}."
            " Save or download the model again."
        ) from error


@contextmanager
def without_warnings() -> Generator[None]:
    """Silence what diffusers and transformers say of missing weights and safety checkers: those are looked at here."""
    loggers = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in loggers]
    for library in loggers:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in zip(loggers, levels, strict=True):
            library.set_verbosity(level)


def _sentence(error: Exception) -> str:
    """Return the first sentence of an error."""
    return reason(error).partition(". ")[0].rstrip(".: ")


def lacks_weights(folder: Path) -> bool:
    """Return True if a component of a folder has no file of weights, main or of a variant."""
    return not all(has_weights(folder / name) for name in module_classes(folder))


def _index_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return library and class of each component that a model has.

    Raises:
        InputError: The index cannot be read, or the pipeline is code in the folder itself.
    """
    file = folder / "model_index.json"
    _check_content(file)
    with one_line(folder):
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        pipeline = index.get("_class_name")
    if isinstance(pipeline, list):
        raise InputError(
            f"model: expected a pipeline of diffusers in {str(folder)!r}, got {pipeline[-1]!r} from the folder's own"
            f" {pipeline[0]}.py, which acts during sampling. Use its ledger, or diffusers with trust_remote_code=True."
        )
    with one_line(folder):
        lists = {name: cast("list[Any]", value) for name, value in index.items() if isinstance(value, list)}
        parts = {name: pair for name, pair in lists.items() if len(pair) == 2}
    for name, pair in parts.items():
        if pair != [None, None] and not all(isinstance(word, str) for word in pair):
            raise InputError(
                f"model: expected library and class of {shortened(name)} in {str(file)!r}, got {shortened(pair)}."
                " Copy or download the file again."
            )
    return {name: (library, kind) for name, (library, kind) in parts.items() if library is not None}


def _check_content(path: Path) -> None:
    """Refuse the files of a component that have no content, those of its weights apart.

    Raises:
        InputError: A file is empty, or a pointer to its content.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        may_be_empty = file.suffix == ".txt" and not file.stat().st_size  # merges of a vocabulary of bytes
        if file.suffix in (".json", ".txt", ".model") and not may_be_empty and (got := unusable(file)) is not None:
            raise InputError(f"model: expected the content of {str(file)!r}, got {got}")


def module_classes(folder: Path) -> dict[str, type[nn.Module]]:
    """Return the class of each component of a folder that has weights.

    Raises:
        InputError: The folder's `model_index.json` cannot be read.
    """
    classes = {name: _class_of(value) for name, value in _index_of(folder).items()}
    return {name: kind for name, kind in classes.items() if isinstance(kind, type) and issubclass(kind, nn.Module)}


def _class_of(value: tuple[str, str]) -> Any:
    """Return the class of a component, from its library and name; None for one that only diffusers can find."""
    library, name = value
    if hasattr(diffusers.pipelines, library):
        source = getattr(diffusers.pipelines, library)
    elif library in ("diffusers", "transformers"):
        source = import_module(library)
    else:  # custom code, which only diffusers may run
        return None
    return getattr(source, name, None)


def load_module(name: str, kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Return the network of a component's folder.

    Args:
        name: Name of the component.
        kind: Class of the network.
        folder: Folder of its configuration and weights.
        dtype: Precision of the weights.

    Raises:
        InputError: It cannot be loaded, or a weight is missing, of another shape or not finite.
    """
    check_files(folder)
    safe = all(file.suffix == ".safetensors" for file in weight_files(folder))
    with one_line(folder), without_warnings():
        module, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant_of(folder),
            use_safetensors=safe,
            output_loading_info=True,
            local_files_only=True,
        )
    check_whole(name, folder, info)
    _check_finite(name, folder, module)
    return module.eval()


def check_files(folder: Path) -> None:
    """Raise InputError if a file of a component is a pointer or empty, or one of its weights is damaged."""
    _check_content(folder)
    for file in weight_files(folder):
        if (got := unusable(file)) is not None:
            raise InputError(f"model: expected weights in {str(file)!r}, got {got}")
        if file.suffix == ".safetensors":
            try:
                tensors = stored_tensors(file)
            except ErasureError as error:
                raise InputError(f"model: {error}") from error
            _check_types(folder, file, tensors)


def _check_types(folder: Path, file: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raise InputError for weights in integers without the configuration by which they are read."""
    integers = [tensor for tensor in tensors.values() if tensor.type_name in _INTEGERS]
    config = folder / "config.json"
    if integers and not (config.is_file() and "quantization_config" in config.read_text(encoding="utf-8")):
        raise InputError(
            f"model: expected weights as fractions in {str(file)!r}, got {integers[0].type_name} in"
            f" {integers[0].name!r} without a quantization_config. Save or download the model unquantised."
        )


def check_whole(name: str, folder: Path, info: Mapping[str, Any]) -> None:
    """Raise InputError if weights were missing, which the libraries fill with random numbers."""
    missing = sorted(map(str, info.get("missing_keys", ())))
    if not missing:
        return
    others = sorted(map(str, info.get("unexpected_keys", ())))
    beside = f"; it has {_some(others)}, which the model has not" if others else ""
    raise InputError(
        f"model: expected every weight of the {name} in {str(folder)!r}, got none for {_some(missing)}{beside}."
        " Save the model again, under the names of these versions of diffusers and transformers."
    )


def _check_finite(name: str, folder: Path, module: nn.Module) -> None:
    for key, weight in module.named_parameters():
        if weight.dtype not in _COMPUTED_IN:
            continue
        if not is_finite(weight.detach()):
            raise InputError(
                f"model: expected finite weights, got inf or nan in '{name}.{key}' of {str(folder)!r} as"
                f" {str(weight.dtype).removeprefix('torch.')}. Download the model again, or load it in float32."
            )


def _some(names: list[str]) -> str:
    """Return the first names and the number of the others."""
    shown = ", ".join(map(repr, names[:2]))
    return shown if len(names) <= 2 else f"{shown} and {len(names) - 2} more"
