"""Moments of a process: what it has changed on the disk so far, and its end just before one of those changes."""

import mmap
import os
import signal
import sys
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Changes:
    """Number of changes of files that a forked process has begun, shared with the process that forked it."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 8)

    @property
    def count(self) -> int:
        """Number of files opened for writing, named, deleted or made so far."""
        return int.from_bytes(self._shared[:8], "little")

    def follow(self, last: int | None) -> None:
        """Count the changes of this process from now on, and end it by SIGKILL before one of them.

        Args:
            last: Number of changes that are still begun; None ends nothing.
        """
        self._shared[:8] = bytes(8)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
            if not (opened or event in _CHANGES) or arguments[0] == os.devnull:
                return
            if self.count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            self._shared[:8] = (self.count + 1).to_bytes(8, "little")

        sys.addaudithook(hook)
