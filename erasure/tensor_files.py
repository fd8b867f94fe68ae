"""Safetensors files written tensor by tensor, so that a file may be larger than the memory that is left."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import InputError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # of the data in the file, as the format's own writer has it
_PIECE = 2**20  # bytes copied at once


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One tensor of a file to be written: what the header says of it, and who writes its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    write: Callable[[BinaryIO], None]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a new file, one after another; a copy of one at a time is made.

    Raises:
        InputError: A tensor has a type that such a file does not hold.
    """
    _write(path, {name: _part_of(name, tensor) for name, tensor in tensors.items()}, metadata or {"format": "pt"})


def rewrite_tensors(
    source: Path, to: Path, changed: Mapping[str, Callable[[Tensor], Tensor]], *, at_least: torch.dtype | None = None
) -> None:
    """Copy a file with some of its tensors changed; the rest is copied byte by byte, and nothing is loaded whole.

    Args:
        source: The file.
        to: The new file.
        changed: What each of some tensors becomes; shapes stay.
        at_least: A precision that narrower ones of the changed tensors are widened to, before they are changed; None
            leaves each as it is.
    """
    header, start = _header_of(source)
    metadata = header.pop("__metadata__", {})
    with safe_open(source, framework="pt") as file, source.open("rb") as raw:

        def part(name: str, about: Any) -> _Part:
            low, high = about["data_offsets"]
            if name not in changed:
                return _Part(
                    dtype=about["dtype"],
                    shape=tuple(about["shape"]),
                    size=high - low,
                    write=lambda target: _copy(raw, start + low, high - low, target),
                )
            tensor = file.get_slice(name)
            dtype = next(kind for kind, text in _NAMES.items() if text == tensor.get_dtype())
            if at_least is not None and dtype.itemsize < at_least.itemsize:
                dtype = at_least
            shape = tuple(tensor.get_shape())

            def write(target: BinaryIO) -> None:
                target.write(_content(changed[name](file.get_tensor(name).to(dtype)).to(dtype).reshape(shape)))

            return _Part(dtype=_NAMES[dtype], shape=shape, size=dtype.itemsize * prod(shape), write=write)

        _write(to, {name: part(name, about) for name, about in header.items()}, metadata)


def tensor_names(path: Path) -> list[str]:
    """Return the names of a file's tensors."""
    return [name for name in _header_of(path)[0] if name != "__metadata__"]


def data_size(path: Path) -> int:
    """Return the bytes of a file's tensors, without its header."""
    return path.stat().st_size - _header_of(path)[1]


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header, in the order of the data, and where the data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    ordered = sorted(header, key=lambda name: header[name].get("data_offsets", [-1, -1]))
    return {name: header[name] for name in ordered}, 8 + length


def _write(path: Path, parts: Mapping[str, _Part], metadata: Mapping[str, str]) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, part in parts.items():
        header[name] = {"dtype": part.dtype, "shape": list(part.shape), "data_offsets": [end, end + part.size]}
        end += part.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            part.write(file)
        file.flush()
        os.fsync(file.fileno())


def _part_of(name: str, tensor: Tensor) -> _Part:
    def write(file: BinaryIO) -> None:
        file.write(_content(tensor))

    if tensor.dtype not in _NAMES:
        raise InputError(f"{name}: expected a tensor of numbers, got {tensor.dtype}. Convert it.")
    return _Part(
        dtype=_NAMES[tensor.dtype],
        shape=tuple(tensor.shape),
        size=tensor.numel() * tensor.element_size(),
        write=write,
    )


def _content(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _copy(source: BinaryIO, at: int, size: int, target: BinaryIO) -> None:
    source.seek(at)
    left = size
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise InputError(f"{getattr(source, 'name', 'file')}: expected {left} more bytes, got the end. It is cut.")
        target.write(piece)
        left -= len(piece)
