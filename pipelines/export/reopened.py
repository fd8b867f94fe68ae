"""Open an export again, as its reader will, and compare it with what was to be written.

Tensors are compared one at a time. A model is loaded again where the memory has room for it; the denoiser is then run.
"""

import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from erasure.backbones import backbone_of
from erasure.backbones.loaded import LoadedModel, unwrapped
from erasure.backbones.storage import StoredWeights, is_stored
from erasure.edits import Edit, WeightEdit
from erasure.errors import ErasureError, ExportError, reason
from erasure.io.memory import free_memory
from erasure.io.tensor_files import stored_tensors
from erasure.loading.components import load_folder, one_line, without_warnings

from .folders import changed_in, parts_of, weights_in
from .loaded_back import is_near, prediction

_ROOM = 4  # free memory over the size of what is loaded again, which is then a minor part of what a model takes


def check_edit(edit: Edit, file: Path) -> None:
    """Refuse the file of an edit that is not read as the edit that was written.

    Raises:
        ExportError: It is damaged, or read as another.
    """
    with _reading("edit", file.parent):
        read = Edit.load(file).as_file()
    written = edit.as_file()
    if (read.format, json.dumps(read.description, sort_keys=True)) != (
        written.format,
        json.dumps(written.description, sort_keys=True),
    ):
        raise _differs("edit", f"another description in {file.name!r}")
    _compare("edit", written.tensors, read.tensors)


def check_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file that does not hold the tensors that were written to it, such as those of a guidance.

    Raises:
        ExportError: It is damaged, or holds others.
    """
    with _reading("pipeline", file.parent):
        _compare("pipeline", tensors, {name: stored.read() for name, stored in stored_tensors(file).items()})


def check_folder(edit: WeightEdit, pipe: DiffusionPipeline, source: Path, folder: Path, prompts: Sequence[str]) -> None:
    """Refuse a model's folder that does not have the files of its base with an edit in them, or is not loaded as such.

    Of each file the changed tensors are computed again and compared to the last bit, the others by type and size. The
    changed components and the denoiser are loaded by diffusers and run, except those of a model whose weights stay in
    its files, or for which there is no room.

    Args:
        edit: The edit.
        pipe: The base.
        source: Its files.
        folder: The folder.
        prompts: Prompts of the predictions that are compared, such as a removed concept.

    Raises:
        ExportError: The files differ, or cannot be loaded, or the model that they are loaded as predicts otherwise.
    """
    with _reading("pipeline", folder):
        seen: set[str] = set()
        for part in parts_of(source):
            for path in weights_in(source / part):
                seen |= _compare_file(edit, part, path, folder / path.relative_to(source))
        stored, backbone = StoredWeights(folder), cast(LoadedModel, backbone_of(pipe))
        for name in edit.changes.keys() - seen:  # of components whose base has other files
            [weight] = backbone.weights(name.__eq__).values()
            _compare("pipeline", {name: edit.edited(name, weight)}, {name: _stored(pipe, stored, name)})
        anew = {backbone.denoiser_name, *(name.partition(".")[0] for name in edit.changes)}
        if is_stored(pipe) or not _has_room(pipe, anew):
            return
        present = {name: part for name, part in pipe.components.items() if name not in anew}
        again = load_folder(folder, backbone.dtype, present).to(backbone.device)
        for name, weight in backbone_of(again).weights(edit.changes.__contains__).items():
            _compare("pipeline", {name: _stored(pipe, stored, name).to(weight.dtype)}, {name: weight.cpu()})
    with edit.applied_to(pipe, check=False):
        _compare_predictions("pipeline", pipe, again, anew, prompts)


def check_checkpoint(pipe: DiffusionPipeline, file: Path, config: Path, prompts: Sequence[str]) -> None:
    """Refuse a checkpoint that diffusers does not convert back into the model that was written.

    Args:
        pipe: The edited model.
        file: The checkpoint; its weights are mapped into memory, not copied.
        config: Folder with the model's configurations.
        prompts: See `check_folder`.

    Raises:
        ExportError: The converter refuses it, or loses or changes a weight, or the model predicts otherwise.
    """
    backbone, loader = cast(LoadedModel, backbone_of(pipe)), cast("Any", type(pipe))
    with _reading("checkpoint", file.parent), one_line(file), without_warnings():
        again = loader.from_single_file(str(file), config=str(config), dtype=backbone.dtype, local_files_only=True)
    for part in (*backbone.components(), "vae"):
        weights, read = (unwrapped(getattr(each, part)).state_dict() for each in (pipe, again))
        _compare("checkpoint", weights, read, f"{part}.")
    if _has_room(pipe, backbone.components()):
        _compare_predictions("checkpoint", pipe, again.to(backbone.device), backbone.components(), prompts)


def _compare_file(edit: WeightEdit, part: str, path: Path, copy: Path) -> set[str]:
    """Compare a file of a component's weights with its copy with an edit in it; return the changed parameters."""
    names = changed_in(edit, part, path)
    if not names:
        if not copy.is_file() or copy.stat().st_size != path.stat().st_size:
            raise _differs("pipeline", f"another size of '{part}/{path.name}'")
        return set()
    before, after = stored_tensors(path), stored_tensors(copy)
    for key, tensor in before.items():
        if key not in after or after[key].shape != tensor.shape:
            raise _differs("pipeline", f"no {key!r} of its shape in '{part}/{path.name}'")
        written = after[key]
        if key in names:
            edited = edit.edited(names[key], tensor.read().to(written.dtype)).to(written.dtype)
            _compare("pipeline", {names[key]: edited}, {names[key]: written.read()})
        elif written.type_name != tensor.type_name:
            raise _differs("pipeline", f"another type of {key!r} in '{part}/{path.name}'")
    return set(names.values())


def _compare(form: str, written: Mapping[str, Tensor], read: Mapping[str, Tensor], prefix: str = "") -> None:
    """Refuse tensors that are not to the last bit those that were written, in the type in which they are read."""
    for name, tensor in written.items():
        other = read.get(name)
        if other is None or other.is_meta or other.shape != tensor.shape:
            raise _differs(form, f"no '{prefix}{name}' of its shape")
        if not torch.equal(tensor.detach().to("cpu", other.dtype), other.detach().cpu()):
            raise _differs(form, f"another '{prefix}{name}'")
    if further := sorted(read.keys() - written.keys()):
        raise _differs(form, f"'{prefix}{further[0]}', which was not written")


def _compare_predictions(
    form: str, pipe: DiffusionPipeline, again: DiffusionPipeline, parts: Iterable[str], prompts: Sequence[str]
) -> None:
    """Compare a prediction of a pipeline with that of components loaded again, each with all else that it has."""
    expected, present = prediction(pipe, prompts), {part: getattr(pipe, part) for part in parts}
    try:
        for part in present:
            setattr(pipe, part, getattr(again, part))
        output = prediction(pipe, prompts)
    finally:
        for part, module in present.items():
            setattr(pipe, part, module)
    if not is_near(output, expected, expected):
        raise _differs(form, "another prediction than that of the edited weights")


def _stored(pipe: DiffusionPipeline, stored: StoredWeights, name: str) -> Tensor:
    """Return a parameter from the files that a model is loaded from."""
    part, _, key = name.partition(".")
    component = backbone_of(pipe).component(part)
    return stored.parameter(name, tuple(component.get_parameter(key).shape), component).read()


def _has_room(pipe: DiffusionPipeline, parts: Iterable[str]) -> bool:
    """Return True if there is room to load components again, in memory and on the model's device."""
    modules = [cast("nn.Module", unwrapped(getattr(pipe, part))) for part in parts]
    size = sum(weight.numel() * weight.element_size() for module in modules for weight in module.parameters())
    free = [free_memory(device) for device in {torch.device("cpu"), backbone_of(pipe).device}]
    return all(each is None or _ROOM * size <= each for each in free)


@contextmanager
def _reading(form: str, folder: Path) -> Generator[None]:
    """Turn an error of reading an export into one of the export, with names of files inside its folder."""
    try:
        yield
    except ExportError:
        raise
    except ErasureError as error:
        # The message of another library is the cause of ours, which is for models that a caller names.
        inside = reason(error.__cause__ or error).replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
        raise _differs(form, f"an error ({inside.partition('. ')[0].rstrip('.')})") from error


def _differs(form: str, got: str) -> ExportError:
    return ExportError(
        f"{form}: expected the export to be read back as it was written, got {got}. Check the disk, and export again."
    )
