"""Tensors that are made once and kept in a folder."""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import InputError
from .files import make_folder, write_whole


@dataclass
class MakingTime:
    """Time in which tensors were made for a folder.

    Attributes:
        seconds: CPU seconds.
    """

    seconds: float = 0.0


_CLOCK: ContextVar[MakingTime | None] = ContextVar("clock", default=None)


@contextmanager
def making_timed() -> Generator[MakingTime]:
    """Count the time in which `stored` makes what a folder lacks, for the length of a `with`.

    It is no cost of the one that comes first alone: all others that share the folder need the same.
    """
    clock = MakingTime()
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)


def stored(folder: Path | None, key: Sequence[object], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that `make` returns, from the folder if they were made before.

    Args:
        folder: Folder that keeps them, in a file named by the hash of their key; None keeps nothing.
        key: Everything that they depend on, as JSON values.
        make: Makes the tensors.

    Raises:
        InputError: The folder cannot be written, or holds a damaged file.
    """
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:24]}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError):
            raise InputError(
                f"{path}: expected what was kept there, got a damaged file. Delete it; it is made again."
            ) from None
    clock = _CLOCK.get() or MakingTime()
    before, began = clock.seconds, time.process_time()
    tensors = {name: tensor.contiguous() for name, tensor in make().items()}
    clock.seconds = before + time.process_time() - began  # what was stored within is in it
    make_folder(folder)
    write_whole(path, save(tensors))
    return tensors
