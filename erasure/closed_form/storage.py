"""Storage of the rows of least-squares problems.

A removal's own states are those of its targets. What they become, and what is preserved, are the same states in one
removal after another. So these lie in blocks, one for each anchor and each preserved name, and a folder of removals can
hold each block once, in a file that is named by its hash. Names, sites and weights repeat many times over and are one
compressed JSON value.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from ..backbones.conditioning import TEXT
from ..concept import normalized
from ..errors import InputError, reason
from ..io.files import make_folder, write_whole
from .problem import Rows

_BLOCKS = {"rows.anchors": "anchor_labels", "rows.preserve": "preserve_labels"}
_WORDS = "rows.words"
_MOST_WORDS = 2**28  # bytes unpacked; those of a thousand removals at once are fewer
_WORTH_A_FILE = 4096  # bytes: what a file takes of most disks, however little it holds


def packed(rows: Rows) -> dict[str, Tensor]:
    """Return the rows as tensors by name; `unpacked` gives them back to the last bit."""
    columns = {item.name: getattr(rows, item.name) for item in fields(rows) if item.name != "space"}
    for name in ("reg_each", "threshold", "held_rank"):
        if not columns[name]:  # a default, which files of earlier versions lack
            del columns[name]
    tensors = {"rows.targets": _compact(columns.pop("targets"))}
    for name, labels in _BLOCKS.items():
        states = columns.pop(name.removeprefix("rows."))
        for i, places in enumerate(_places(columns[labels]).values()):
            tensors[f"{name}.{i}"] = _compact(_taken(states, places))
    lists = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in columns.items()}
    words = zlib.compress(json.dumps(lists, ensure_ascii=False).encode(), 9)
    tensors[_WORDS] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    return {f"{_prefix(rows.space)}{name}": tensor for name, tensor in tensors.items()}


def unpacked(tensors: Mapping[str, Tensor], space: str = TEXT) -> Rows:
    """Return the rows of a text stream that `packed` made the tensors of.

    Raises:
        InputError: They are damaged.
    """
    prefix = _prefix(space)
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        return _checked(replace(_unpacked(inner), space=space))
    except InputError:
        raise
    except (zlib.error, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(reason(error)) from error


def _prefix(space: str) -> str:
    """Return the first part of the names of tensors of a text stream; those of the tokens' states have none."""
    return "" if space == TEXT else f"{space}."


def _unpacked(tensors: Mapping[str, Tensor]) -> Rows:
    unpacking = zlib.decompressobj()
    words = unpacking.decompress(tensors[_WORDS].numpy().tobytes(), _MOST_WORDS)
    if not unpacking.eof:
        raise _damaged("words that are cut or too many")
    columns: dict[str, Any] = json.loads(words)
    for name, value in columns.items():
        if name.endswith(("labels", "sites")):
            columns[name] = tuple(value)
        elif isinstance(value, list):
            columns[name] = torch.tensor(value, dtype=torch.float64)
    targets = tensors["rows.targets"].double()
    for name, labels in _BLOCKS.items():
        states = torch.zeros(len(columns[labels]), targets.shape[1], dtype=torch.float64)
        for i, places in enumerate(_places(columns[labels]).values()):
            states.numpy()[places] = tensors[f"{name}.{i}"].numpy()
        columns[name.removeprefix("rows.")] = states
    return Rows(targets=targets, **columns)


def unpacked_first(columns: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Rows:
    """Return the rows of a file of the first format, where each column was written out.

    Raises:
        InputError: They are damaged.
    """
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in columns.items()}
    states: dict[str, Any] = {
        name.removeprefix("rows."): tensors[name].double() for name in tensors if name.startswith("rows.")
    }
    try:
        return _checked(Rows(**lists, **states))
    except (TypeError, AttributeError) as error:
        raise _damaged(reason(error)) from error


def _checked(rows: Rows) -> Rows:
    """Return rows, unless their columns differ in length or in type from what they should be."""
    strengths = rows.weights if rows.strengths is None else rows.strengths
    erased = (rows.anchors, strengths, rows.weights, rows.labels, rows.anchor_labels, rows.sites)
    kept = (rows.preserve_weights, rows.preserve_labels, rows.preserve_sites)
    if {len(column) for column in erased} != {len(rows.targets)} or {len(column) for column in kept} != {
        len(rows.preserve)
    }:
        raise _damaged("columns of different lengths")
    widths = {tuple(states.shape[1:]) for states in (rows.targets, rows.anchors, rows.preserve)}
    vectors = (strengths, rows.weights, rows.preserve_weights)
    if len(widths) > 1 or rows.targets.ndim != 2 or any(vector.ndim != 1 for vector in vectors):
        raise _damaged("states of different shapes")
    texts = (rows.labels, rows.anchor_labels, rows.sites, rows.preserve_labels, rows.preserve_sites)
    numbers = (rows.reg, rows.reg_each, rows.threshold, 0 if rows.held_rank is None else rows.held_rank)
    if not all(isinstance(text, str) for column in texts for text in column) or not {int, float}.issuperset(
        map(type, numbers)
    ):
        raise _damaged("columns of other types")
    for label in dict.fromkeys((*rows.labels, *rows.anchor_labels, *rows.preserve_labels)):
        if label != normalized(label):
            raise _damaged(f"the label {label!r}")
    return rows


def put_apart(tensors: dict[str, Tensor], folder: Path) -> dict[str, str]:
    """Take the blocks that are worth a file out of `tensors`, into files of a folder; return their hashes by name.

    A block that the folder holds is not written again; one that was damaged there is mended.

    Raises:
        InputError: The folder cannot be written.
    """
    hashes = {}
    blocks = [name for name in tensors if any(f".{block}." in f".{name}" for block in _BLOCKS)]
    for name in [name for name in blocks if _size(tensors[name]) >= _WORTH_A_FILE]:
        content = save({"states": tensors.pop(name)})  # of one tensor and no metadata: the same bytes at any time
        hashes[name] = hashlib.sha256(content).hexdigest()
        file = _file(folder, hashes[name])
        if not file.is_file() or file.read_bytes() != content:
            make_folder(folder)
            write_whole(file, content)
    return hashes


def fetched(hashes: Mapping[str, str], folder: Path) -> dict[str, Tensor]:
    """Return the blocks that `put_apart` wrote, by name.

    Raises:
        InputError: One is missing, or is not what was written.
    """
    return {name: _fetched(digest, folder) for name, digest in hashes.items()}


def _fetched(digest: str, folder: Path) -> Tensor:
    file = _file(folder, digest)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{file}: expected rows that an edit shares with others, got {error.strerror!r}."
            " Load it where it was saved, and save it alone to take it elsewhere."
        ) from None
    actual = hashlib.sha256(content).hexdigest()
    if actual != digest:
        raise InputError(f"{file}: expected the file with sha256 {digest[:12]}, got {actual[:12]}. It was changed.")
    return load(content)["states"]


def _damaged(got: str) -> InputError:
    return InputError(f"edit: expected the rows of an edit, got {got}. The file is damaged: copy or save it again.")


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.safetensors"


def _places(labels: Sequence[str]) -> dict[str, list[int]]:
    """Return where each label stands, in the order in which they first do."""
    places: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        places.setdefault(label, []).append(i)
    return places


def _taken(states: Float[Tensor, "n dim"], places: list[int]) -> Float[Tensor, "m dim"]:
    """Return some of the rows; by numpy, since torch would use threads, which hang where a process was forked."""
    return torch.from_numpy(states.numpy()[places])


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _compact(states: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    """Return float64 states as float32 where that loses nothing, as with those of a float32 text encoder."""
    single = states.float()
    return single.contiguous() if torch.equal(single.double(), states) else states.contiguous()
