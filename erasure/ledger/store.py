"""The folder of a ledger on the disk: the record under a lock, the files of edits, shared rows."""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from ..edits import Edit
from ..errors import InputError, LedgerError
from ..io.files import make_folders, write_whole
from .record import FILE, Entry, Record, is_ledger, parsed, read_record
from .standing import Standing

_LOCK_SECONDS = 30.0


class LedgerStore:
    """The files of one ledger, with the record as last read or written.

    Attributes:
        path: The folder.
        record: The record.
    """

    def __init__(self, path: Path, record: Record, content: bytes = b"") -> None:
        self.path = path
        self.record = record
        self._content: bytes = content  # the bytes that the record was read from or written as
        self._standing = Standing()
        self._reading = Lock()  # jobs of the demo share a ledger
        self._whole: set[str] = set()  # hashes of the edits that this process wrote, or read and found whole

    @classmethod
    def create(cls, path: Path, record: Record, *, or_open: bool = False) -> "LedgerStore":
        """Start a ledger in a folder, which is made if needed.

        Args:
            path: The folder.
            record: The record of the new ledger.
            or_open: Whether a ledger of the same base that another process starts at the same time is opened instead.

        Raises:
            LedgerError: There is a ledger already, or the folder cannot be made.
            InputError: The record cannot be written.
        """
        with _written_in(path):
            make_folders(path / "edits")
            with _lock_of(path):
                if not is_ledger(path):
                    store = cls(path, record)
                    store.write(record)
                    return store
        if or_open and (store := cls.open(path)).record.base == record.base:
            return store
        raise LedgerError(f"ledger: expected a new folder, got {str(path)!r}, which holds a ledger. Open that one.")

    @classmethod
    def open(cls, path: Path) -> "LedgerStore":
        """Open the ledger of a folder.

        Raises:
            LedgerError: There is none, or its record is damaged.
        """
        content = read_record(path)
        return cls(path, parsed(content, path), content)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the lock of the folder, with the record as it is on the disk now.

        Raises:
            LedgerError: Another process holds the lock for too long, or the folder cannot be written.
        """
        with _written_in(self.path), _lock_of(self.path):
            self.refresh()
            self._sweep()
            yield

    def refresh(self) -> None:
        """Read the record again if another process wrote it.

        The bytes are compared: that takes a fraction of a millisecond, parsing takes tens, and neither a clock nor a
        reused inode can mislead it.
        """
        content = read_record(self.path)
        if content != self._content:
            self.record, self._content = parsed(content, self.path), content

    def write(self, record: Record) -> None:
        """Replace the record; the lock must be held."""
        content = record.content()
        write_whole(self.path / FILE, content)
        self.record, self._content = record, content

    @property
    def standing(self) -> Standing:
        """The removals that stand."""
        with self._reading:
            self._standing = self._standing.of(self.record.entries)
            return self._standing

    def load(self, entry: Entry) -> Edit:
        """Return the edit of an entry.

        Raises:
            LedgerError: The file is missing, or is not the one that was added.
        """
        path = self.path / entry.file
        try:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise LedgerError(
                f"{path}: expected the edit of entry {entry.id}, got {error.strerror!r}. {_repair(entry)}"
            ) from None
        if sha256 != entry.sha256:
            raise LedgerError(
                f"{path}: expected the file with sha256 {entry.sha256[:12]}, got {sha256[:12]}. It was changed."
                f" {_repair(entry)}"
            )
        try:
            return Edit.load(path, shared=self.path / "rows")
        except InputError as error:
            raise LedgerError(f"ledger entry {entry.id}: {error} {_repair(entry)}") from None

    def check_whole(self) -> None:
        """Refuse a ledger with a standing removal that cannot be read; each is read once by this process.

        Raises:
            LedgerError: One cannot.
        """
        for entry in self.record.entries:
            if entry.state == "standing" and entry.sha256 not in self._whole:
                self.load(entry)
                self._whole.add(entry.sha256)

    def save(self, edit: Edit, file: str) -> str:
        """Write the edit of a new entry and return its hash."""
        path = edit.save(self.path / file, shared=self.path / "rows")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._whole.add(sha256)
        return sha256

    def _sweep(self) -> None:
        """Delete the files of an addition that was killed before `ledger.json` named it."""
        named = {entry.file for entry in self.record.entries}
        edits = self.path / "edits"
        for name in os.listdir(edits) if edits.is_dir() else ():  # names alone: there is one for every removal
            if name.endswith((".safetensors", ".tmp")) and f"edits/{name}" not in named:
                (edits / name).unlink()
        # Rows that such an addition had written are kept: they are correct, and the next addition likely needs them.
        for name in os.listdir(self.path / "rows") if (self.path / "rows").is_dir() else ():
            if name.endswith(".tmp"):
                (self.path / "rows" / name).unlink()


def _repair(entry: Entry) -> str:
    """Return the ways to a ledger whose standing removals can all be read."""
    return f"Put it back from a copy, or undo {entry.id} and remove it again."


@contextmanager
def starting(path: Path) -> Generator[None]:
    """Delete a ledger that was started inside the `with`, if an error ends it before there is anything in its folder.

    Args:
        path: Folder of the ledger.
    """
    was_folder, was_ledger = path.exists(), is_ledger(path)
    try:
        yield
    except BaseException:
        if not was_ledger and is_ledger(path):  # a lock alone would make its folder
            with suppress(OSError, LedgerError):
                _delete_unused(path, folder=not was_folder)
        raise


def _delete_unused(path: Path, *, folder: bool) -> None:
    with _lock_of(path):
        if {other.name for other in path.iterdir()} != {FILE, ".lock", "edits"}:
            return
        (path / "edits").rmdir()  # an error if it holds an edit
        (path / FILE).unlink()
    (path / ".lock").unlink(missing_ok=True)
    if folder:
        path.rmdir()


@contextmanager
def _lock_of(path: Path) -> Generator[None]:
    """Hold the lock of a ledger's folder.

    Raises:
        LedgerError: Another process holds it for too long.
    """
    lock = FileLock(path / ".lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise LedgerError(
            f"ledger {str(path)!r}: expected it to be free, got one that another process"
            f" has held for {_LOCK_SECONDS:.0f} s. Try again when that is done."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written_in(path: Path) -> Generator[None]:
    """Turn the error of a full disk or a forbidden folder into one line."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"ledger {str(path)!r}: expected a folder that can be written, got {error.strerror or str(error)!r}."
            " Nothing was added or undone."
        ) from error
