"""Writing files so that a crash at any moment leaves the old one or the new one, whole."""

import hashlib
import os
import platform
import re
import secrets
import shutil
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from ..errors import InputError
from .text import shortened

_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{6})-(?P<process>[0-9]{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)

_LONGEST_NAME = 255  # bytes, on every common file system
# Folders that were made, in order, where somebody waits for the list.
_made: ContextVar[list[Path] | deque[Path]] = ContextVar("made", default=deque(maxlen=0))  # noqa: B039 - holds nothing

# Start of the file that Git has in the place of one whose content is stored apart.
_POINTER = b"version https://git-lfs.github.com/spec/"


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by a temporary one beside it, flushed to the disk before it takes the name.

    Raises:
        InputError: The place cannot be written; the old file, if any, is untouched.
    """
    if not path.name:
        raise InputError(f"{str(path)!r}: expected a file to write, got a folder. Name a file in it.")
    _sweep(path.parent)
    temporary = _temporary(path)
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
        make_folders(path)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written, got {error.strerror!r}.") from error


def make_folders(path: Path) -> None:
    """Do as `make_folder`, with the system's own errors."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    _made.get().extend(reversed(missing))


@contextmanager
def dropping_empty_folders() -> Generator[None]:
    """Delete the folders that are made inside the `with` and hold nothing at its end, if an error ends it."""
    folders: list[Path] = []
    token = _made.set(folders)
    try:
        yield
    except BaseException:
        for folder in reversed(folders):
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        raise
    finally:
        _made.reset(token)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """Give a temporary folder that takes the name `path`, whole, when the `with` ends well; else nothing is left.

    Raises:
        InputError: There is something at `path` already, or it cannot be written.
    """
    check_free(path)
    path = resolved(path)
    temporary = _temporary(path)
    try:
        make_folder(path.parent)
        _sweep(path.parent)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_file(file)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written, got {_said(error)}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_path(path: str | Path, where: str) -> None:
    """Refuse a path that no system takes: with a null character, half a surrogate pair, or too long a name in it.

    Args:
        path: The path.
        where: Name of the argument, for the error.

    Raises:
        InputError: It is one.
    """
    try:
        names = os.fsencode(path).replace(b"\\", b"/").split(b"/")
    except UnicodeEncodeError:
        names = [b"\0"]
    if any(b"\0" in name or len(name) > _LONGEST_NAME for name in names):
        raise InputError(f"{where}: expected a path that the system takes, got {shortened(str(path))}. Give another.")


def check_free(path: Path) -> None:
    """Raise InputError unless a new folder can take the name `path`, at which there is nothing or an empty folder."""
    try:
        occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise InputError(f"{path}: expected a folder that can be written, got {_said(error)}.") from error
    if occupied:
        raise InputError(f"{path}: expected a new or empty folder, got one that holds something. Name another.")
    place = resolved(path)
    if place == Path.cwd() or os.path.ismount(place):
        use = "the working folder" if place == Path.cwd() else "the root of a file system"
        raise InputError(f"{path}: expected a folder that can be replaced, got {use}. Name one in it.")
    check_places(place.parent)


def resolved(path: Path) -> Path:
    """Return a path without links; unlike `Path.resolve`, also one that is a link to itself."""
    return Path(os.path.realpath(path))


def check_file(path: Path) -> None:
    """Make the folder of a file to be written later; raise InputError if there is a folder in its place."""
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, got a folder. Name a file in it.")


def check_places(folder: Path, *names: str) -> None:
    """Refuse a folder in which files cannot be written, before the work whose results they hold.

    Args:
        folder: Folder of the files, which may have to be made.
        names: Names of the files; a name that ends with a slash is of a folder.

    Raises:
        InputError: A name is taken by a folder, or that of a folder by a file; or the folder cannot be written.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: expected a folder that can be written, got {str(there)!r}, which cannot be.")
    for name in names:
        path = folder / name
        if not os.path.lexists(path) or path.is_dir() == name.endswith("/"):
            continue
        expected, got = ("a folder", "a file") if name.endswith("/") else ("a file", "a folder")
        raise InputError(f"{path}: expected the place of {expected}, got {got}. Move it away.")


def unusable(path: Path) -> str | None:
    """Return a name for a file without content and the remedy; None for any other file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise InputError(f"{path}: expected a file to read, got {error.strerror!r}. Check the path.") from None
    if start == _POINTER:
        return "a Git LFS pointer. Fetch the content by `git lfs pull`, or download the file again."
    return None if start else "an empty file. Copy or download it again."


def _temporary(path: Path) -> Path:
    """Return a hidden name beside a path, which says by whom it is used: this machine and this process."""
    return path.with_name(f".{path.name}.{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


@lru_cache(maxsize=4096)  # once a folder and process: a process that was killed does not write any more
def _sweep(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes of this machine have left in a folder."""
    if os.name != "posix":  # no process can be asked for elsewhere
        return
    with suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or match["machine"] != _MACHINE or _runs(int(match["process"])):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks whether there is one
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _said(error: OSError) -> str:
    return repr(error.strerror or str(error))


def _flush_file(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush the new name itself, where the system lets a folder be opened (Windows does not)."""
    with suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
