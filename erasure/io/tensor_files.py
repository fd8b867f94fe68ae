"""Safetensors files read and written tensor by tensor, so that a file may be larger than the memory that is left.

Nothing is mapped into memory, where what was read once would go on counting as used.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .files import unusable

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
_TYPES = {name: dtype for dtype, name in _NAMES.items()}
# Integers that the numbers of a type are in bits, and the one that is infinity: greater ones are no numbers.
_INFINITE = {
    "F64": (np.uint64, 0x7FF0000000000000),
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_ALIGNMENT = 8  # of the data in the file, as the format's own writer has it
_PIECE = 2**20  # bytes copied at once
_PAGE = 4096  # bytes that a disk reads at least: entries that lie closer are read with all between them


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One tensor of a file to be written: its header entry, and the function that writes its bytes."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    write: Callable[[BinaryIO], None]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor of a file, which stays there until it is read.

    Attributes:
        path: Path of the file.
        name: Name in the file.
        type_name: Name of the type in the file.
        shape: Shape of the tensor.
        start: Offset of the first byte in the file.
        size: Size in bytes.
    """

    path: Path
    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            InputError: It is none that is computed with here.
        """
        if self.type_name not in _TYPES:
            raise InputError(
                f"{self.path}: expected {self.name!r} in one of {', '.join(_TYPES)}, got {self.type_name}. Convert it."
            )
        return _TYPES[self.type_name]

    def read(self) -> Tensor:
        """Return the tensor.

        Raises:
            InputError: The file is cut or cannot be read, or the type is none that is computed with here.
        """
        dtype, content = self.dtype, bytearray(self.size)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if file.readinto(content) < self.size:
                raise _cut(self.path)
        return _of_bytes(content, dtype).reshape(self.shape)

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Return some of its rows, in that order; for errors see `read`."""
        width = self.size // self.shape[0]
        content = bytearray()
        with self.path.open("rb", buffering=0) as file:
            for index in indices:
                file.seek(self.start + index * width)
                content += file.read(width)
        if len(content) < len(indices) * width:
            raise _cut(self.path)
        return _of_bytes(content, self.dtype).reshape(len(indices), *self.shape[1:])

    def every(self, step: int) -> Tensor:
        """Return its entries 0, step, 2 step, ... in the order of the file; for errors see `read`."""
        width = self.dtype.itemsize
        if self.size <= _PIECE or step * width < _PAGE:
            return self.read().reshape(-1)[::step]
        with self.path.open("rb", buffering=0) as file:
            content = bytearray()
            for offset in range(self.start, self.start + self.size, step * width):
                file.seek(offset)
                content += file.read(width)
        if len(content) < -(-self.size // (step * width)) * width:
            raise _cut(self.path)
        return _of_bytes(content, self.dtype)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return a file's tensors by name, in the order of the data.

    Raises:
        InputError: It cannot be read, is no safetensors file or is cut.
    """
    header, start = _header_of(path)
    header.pop("__metadata__", None)
    try:
        tensors = {name: _stored(path, name, about, start) for name, about in header.items()}
    except (KeyError, TypeError, ValueError):
        raise _no_safetensors(path) from None
    if any(tensor.start + tensor.size > path.stat().st_size for tensor in tensors.values()):
        raise _cut(path)
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a new file, one after another; a copy of one at a time is made.

    Raises:
        InputError: A tensor has a type that such a file does not hold.
    """
    _write(path, {name: _part_of(name, tensor) for name, tensor in tensors.items()}, metadata or {"format": "pt"})


def rewrite_tensors(
    source: Path,
    to: Path,
    changed: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    at_least: torch.dtype | None = None,
    not_finite: Callable[[str], Exception] | None = None,
) -> None:
    """Copy a file with some of its tensors changed; the rest is copied byte by byte, and nothing is loaded whole.

    The file is read once; where nothing of it is looked at, by the system alone.

    Args:
        source: The file.
        to: The new file.
        changed: Function of each tensor to change, by its name; shapes stay.
        at_least: Precision to which narrower changed tensors are widened before the change; None leaves each as it is.
        not_finite: Error for a tensor that is not finite, by its name; None does not look.
    """
    metadata = _header_of(source)[0].get("__metadata__", {})
    with source.open("rb") as raw:

        def part(name: str, stored: StoredTensor) -> _Part:
            if name not in changed:
                return _Part(
                    dtype=stored.type_name,
                    shape=stored.shape,
                    size=stored.size,
                    write=lambda target: _copy_tensor(raw, stored, target, not_finite),
                )
            narrower = at_least is not None and stored.dtype.itemsize < at_least.itemsize
            dtype = at_least if at_least is not None and narrower else stored.dtype

            def write(target: BinaryIO) -> None:
                values = stored.read()
                if not_finite is not None and not values.isfinite().all():
                    raise not_finite(name)
                target.write(_content(changed[name](values.to(dtype)).to(dtype).reshape(stored.shape)))

            return _Part(dtype=_NAMES[dtype], shape=stored.shape, size=dtype.itemsize * prod(stored.shape), write=write)

        _write(to, {name: part(name, stored) for name, stored in stored_tensors(source).items()}, metadata)


def copy_finite(source: Path, to: Path, not_finite: Callable[[str], Exception]) -> None:
    """Copy a file byte by byte, and raise the error for a tensor that is not finite; the file is read once.

    Args:
        source: The file.
        to: The new file.
        not_finite: Error for a tensor, by its name.
    """
    end = 0
    with source.open("rb") as raw, to.open("xb") as target:
        for stored in stored_tensors(source).values():
            _copy(raw, end, stored.start - end, target)
            _copy_tensor(raw, stored, target, not_finite)
            end = stored.start + stored.size
        _copy(raw, end, source.stat().st_size - end, target)


def tensor_names(path: Path) -> list[str]:
    """Return the names of a file's tensors."""
    return [name for name in _header_of(path)[0] if name != "__metadata__"]


def data_size(path: Path) -> int:
    """Return the bytes of a file's tensors, without its header."""
    return path.stat().st_size - _header_of(path)[1]


def _header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header, in the order of the data, and the offset of the data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if 8 + length <= path.stat().st_size else b"")
        ordered = sorted(header, key=lambda name: header[name].get("data_offsets", [-1, -1]))
        return {name: header[name] for name in ordered}, 8 + length
    except OSError as error:
        raise InputError(f"{path}: expected a file to read, got {error.strerror!r}. Check the path.") from None
    except (ValueError, AttributeError, TypeError):
        raise _no_safetensors(path) from None


def _stored(path: Path, name: str, about: object, start: int) -> StoredTensor:
    if not isinstance(about, Mapping):
        raise _no_safetensors(path)
    low, high = about["data_offsets"]
    return StoredTensor(
        path=path,
        name=name,
        type_name=about["dtype"],
        shape=tuple(about["shape"]),
        start=start + low,
        size=high - low,
    )


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


def _copy_tensor(
    source: BufferedReader, stored: StoredTensor, target: BinaryIO, not_finite: Callable[[str], Exception] | None
) -> None:
    if not_finite is None or stored.type_name not in _INFINITE:
        _copy(source, stored.start, stored.size, target)
        return
    for piece in _pieces(source, stored.start, stored.size):
        target.write(piece)
        if not _is_finite(piece, stored.type_name):
            raise not_finite(stored.name)


def _copy(source: BufferedReader, start: int, size: int, target: BinaryIO) -> None:
    """Copy a part of a file behind what is written, by the system where it can."""
    if not hasattr(os, "sendfile") or sys.platform == "darwin":  # whose targets are sockets alone
        target.writelines(_pieces(source, start, size))
        return
    target.flush()
    while size:
        sent = os.sendfile(target.fileno(), source.fileno(), start, size)
        if not sent:
            raise _cut(Path(source.name))
        start, size = start + sent, size - sent
    target.seek(0, os.SEEK_END)


def _pieces(source: BufferedReader, start: int, size: int) -> Iterator[bytearray]:
    source.seek(start)
    for offset in range(0, size, _PIECE):
        piece = bytearray(min(_PIECE, size - offset))
        if source.readinto(piece) < len(piece):
            raise _cut(Path(source.name))
        yield piece


def _is_finite(piece: bytearray, type_name: str) -> bool:
    """Return True if the numbers of a piece are finite, by the bits of their exponents."""
    kind, infinite = _INFINITE[type_name]
    bits = np.frombuffer(piece, dtype=kind)
    return bool(np.bitwise_and(bits, np.iinfo(kind).max >> 1).max(initial=0) < infinite)  # without signs


def _of_bytes(content: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _cut(path: Path) -> InputError:
    return InputError(f"{path}: expected all that its header names, got a file that ends before. Copy it again.")


def _no_safetensors(path: Path) -> InputError:
    got = unusable(path) or "something else. Save or copy it again."
    return InputError(f"{path}: expected a safetensors file, got {got}")
