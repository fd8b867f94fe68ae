"""Writing files so that a crash at any moment leaves the old one or the new one, whole."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from .errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by a temporary one beside it, flushed to the disk before it takes the name.

    Raises:
        InputError: The place cannot be written; the old file, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: expected a place that can be written, got {error.strerror!r}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        InputError: The place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written, got {error.strerror!r}.") from error


def _flush_folder(folder: Path) -> None:
    """Flush the new name itself, where the system lets a folder be opened (Windows does not)."""
    with suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
