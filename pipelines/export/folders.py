"""A model's folder in diffusers' layout with an edit put into its files: variants stay variants, shards stay shards."""

import json
import os
import re
import shutil
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import torch
from diffusers import DiffusionPipeline, ModelMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import PreTrainedModel

from erasure.backbones.loaded import not_finite, other_names, unwrapped
from erasure.backbones.storage import is_stored
from erasure.edits import WeightEdit
from erasure.errors import InputError
from erasure.io.tensor_files import copy_finite, data_size, rewrite_tensors, tensor_names
from erasure.personalize.folder import PERSONALIZED
from erasure.profile import profile_of

# Weights in formats that are not written here: a loader would take them for the edited ones.
_OTHER_WEIGHTS = {".bin", ".ckpt", ".h5", ".index", ".msgpack", ".onnx", ".onnx_data", ".pb", ".pt", ".pth", ".xml"}

# Files written at once: one waits for the disk while numbers of the other are computed or looked at.
_AT_ONCE = 2


def folder_of(name: str) -> Path:
    """Return the folder with a model's files: a shipped model's, a folder, or what the local cache has of the Hub's.

    Raises:
        InputError: There is none.
    """
    if (shipped := profile_of(name).folder) is not None:
        return shipped
    if Path(name).is_dir():
        return Path(name)
    try:
        # Not the whole snapshot: diffusers downloads the parts of it that it loads.
        return Path(hf_hub_download(name, "model_index.json", local_files_only=True)).parent
    except (HFValidationError, OSError):
        raise InputError(
            f"export: expected the files of {name!r} in the local cache, got none. Load it once, or give its folder."
        ) from None


@contextmanager
def files_of(name: str, pipe: DiffusionPipeline) -> Generator[Path]:
    """Give the folder with a model's files, for the length of a `with`; one that has not all of its own is written out.

    A personalised model is a base and what was learned, and a shipped one may have parts of another's.

    Raises:
        InputError: There is none.
    """
    shipped = profile_of(name).folder
    if (Path(name) / PERSONALIZED).is_file() or (shipped and not (shipped / "model_index.json").is_file()):
        with TemporaryDirectory() as folder:
            pipe.save_pretrained(folder)
            yield Path(folder)
    else:
        yield folder_of(name)


def parts_of(source: Path) -> list[str]:
    """Return the components that a model's `model_index.json` names."""
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    return [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]


def copy_configs(source: Path, to: Path) -> None:
    """Copy all that describes a model and none of its weights: configs, tokenizers, licences."""
    to.mkdir(exist_ok=True)
    shutil.copyfile(source / "model_index.json", to / "model_index.json")
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")):
            shutil.copyfile(path, to / path.name)
    for name in parts_of(source):
        for path in _files(source / name):
            copy = to / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not _is_weights(path):
                shutil.copyfile(path, copy)


def write_edited(edit: WeightEdit, pipe: DiffusionPipeline, source: Path, to: Path, *, link: bool = False) -> None:
    """Write a model's files with an edit in them.

    Of each file of weights the changed tensors are computed from those of that file. In the main files they are at
    least float32, which is what a ledger computes in, so that a model loaded in float32 is the ledger's to the last
    bit; variants such as "fp16" keep their precision.

    Args:
        edit: The edit.
        pipe: The base model, for components whose weights are no safetensors files.
        source: Its files.
        to: An empty folder.
        link: Whether files without a changed tensor are hard links to those of the base, where the disk has them.

    Raises:
        InputError: The files lack a parameter that the edit changes, or have one of another shape, or, of a model whose
            weights stay in its files and are not linked, a tensor is not finite; any other was checked when it was
            loaded.
    """
    checked, changing = is_stored(pipe) and not link, Lock()
    copy_configs(source, to)
    written: set[str] = set()
    files: list[tuple[str, Path]] = []
    for name in parts_of(source):
        weights = weights_in(source / name)
        part = unwrapped(getattr(pipe, name, None))
        if not weights and isinstance(part, ModelMixin | PreTrainedModel):
            with edit.applied_to(pipe):
                part.save_pretrained(to / name)
            written |= {key for key in edit.changes if key.partition(".")[0] == name}
        files += [(name, path) for path in weights]

    def write(part: str, path: Path) -> set[str]:
        return _write_weights(edit, part, path, to / path.relative_to(source), link, checked, changing)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        written.update(*pool.map(write, *zip(*files, strict=True)) if files else ())
    for name in parts_of(source):
        for path in (source / name).glob("*.safetensors.index*.json"):
            _write_index(path, to / name / path.name)
    missing = sorted(edit.changes.keys() - written)
    if missing:
        raise InputError(f"export: expected the parameter {missing[0]!r} in {str(source)!r}, got none. Check the base.")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _is_weights(path: Path) -> bool:
    return path.suffix in {".safetensors", *_OTHER_WEIGHTS} or ".index." in path.name


def _write_weights(
    edit: WeightEdit, part: str, path: Path, to: Path, link: bool, checked: bool, changing: Lock
) -> set[str]:
    """Write one file of a component's weights and return the parameters that it changed.

    Args:
        edit: The edit.
        part: Name of the component.
        path: The base's file.
        to: The new file.
        link: See `write_edited`.
        checked: Whether a tensor that is not finite is refused.
        changing: Held while a tensor is changed, so that memory holds one of them whatever is written at once.
    """

    def refusal(key: str) -> InputError:
        return not_finite(f"{part}.{key}")

    def edited(name: str, weight: Tensor) -> Tensor:
        with changing:
            return edit.edited(name, weight)

    names = changed_in(edit, part, path)
    if names:
        changed = {key: partial(edited, name) for key, name in names.items()}
        at_least = None if _is_variant(path) else torch.float32
        rewrite_tensors(path, to, changed, at_least=at_least, not_finite=refusal if checked else None)
    elif checked:
        copy_finite(path, to, refusal)
    else:
        _copy(path, to, link)
    return set(names.values())


def _copy(path: Path, to: Path, link: bool) -> None:
    """Copy a file, or make a hard link to it where both are on one disk."""
    if link:
        with suppress(OSError):
            os.link(path.resolve(), to)  # of the file, where the local cache has a symbolic link
            return
    shutil.copyfile(path, to)


def weights_in(folder: Path) -> list[Path]:
    """Return the files of a component's weights, of all variants; none where they are in other formats."""
    return [path for path in _files(folder) if path.name.endswith(".safetensors")]


def changed_in(edit: WeightEdit, part: str, path: Path) -> dict[str, str]:
    """Return the parameters that an edit changes in a file of a component's weights, by their names there."""
    return {key: name for key in tensor_names(path) if (name := _parameter(edit, part, key)) is not None}


def _parameter(edit: WeightEdit, part: str, key: str) -> str | None:
    """Return the changed parameter that a tensor is."""
    names = (f"{part}.{name}" for name in other_names(key))
    return next((name for name in names if name in edit.changes), None)


def _is_variant(path: Path) -> bool:
    """Return True for a file of a named variant: "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"."""
    return "." in re.sub(r"-\d+-of-\d+", "", path.stem)


def _write_index(path: Path, to: Path) -> None:
    """Copy a list of shards, and have it say how large they are now; not one of shards that are not all there."""
    index = json.loads(path.read_text(encoding="utf-8"))
    shards = {to.parent / name for name in index["weight_map"].values()}
    if not all(shard.is_file() for shard in shards):
        return  # of a variant that was not downloaded
    index["metadata"] = {**index.get("metadata", {}), "total_size": sum(map(data_size, shards))}
    to.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
