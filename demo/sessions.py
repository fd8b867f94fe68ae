"""Who is here: each visitor has a ledger and a folder of their own, which go when they have been away for long."""

import atexit
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.errors import InputError
from erasure.ledger import Ledger

from .studio import Attended, Comparison

IDLE_SECONDS = 2 * 3600.0
MOST = 500
_LONGEST_KEY = 100


@dataclass(kw_only=True)
class Session:
    """One visitor.

    Attributes:
        folder: Where all that is theirs is.
        ledger_folder: Their ledger.
        seen: When they last asked for something, by `time.monotonic`.
        compared: What they last compared.
        attended: Whose attention they last looked at.
        jobs: How many of their jobs run now.
    """

    folder: Path
    ledger_folder: Path
    seen: float = field(default_factory=time.monotonic)
    compared: Comparison | None = None
    attended: Attended | None = None
    jobs: int = 0
    _stops: dict[tuple[str, str], threading.Event] = field(default_factory=dict)

    def stop(self, page: str, job: str) -> threading.Event:
        """Return what ends a job of one of the visitor's pages."""
        return self._stops.setdefault((page, job), threading.Event())

    def leave(self, page: str) -> None:
        """End all jobs of a page that was closed."""
        for (owner, _), stop in list(self._stops.items()):
            if owner == page:
                stop.set()

    def ledger(self) -> Ledger | None:
        """Return the visitor's ledger, None before the first removal.

        Raises:
            LedgerError: It is damaged.
        """
        return Ledger.open(self.ledger_folder) if (self.ledger_folder / "ledger.json").exists() else None

    def open_ledger(self, pipe: Any, model: str) -> Ledger:
        """Return the visitor's ledger, made if need be.

        Raises:
            LedgerError: Its folder cannot be written, or it is damaged.
        """
        return Ledger.open_or_create(self.ledger_folder, pipe, model)


class Sessions:
    """All visitors.

    Args:
        ledger: The one ledger that every visitor works on; None gives each their own.
    """

    def __init__(self, ledger: Path | None = None) -> None:
        self.shared = ledger
        self.folder = Path(tempfile.mkdtemp(prefix="erasure-app-"))
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def of(self, key: str) -> Session:
        """Return the session of a key, a new one for a new key; whoever has been away for long is forgotten.

        Args:
            key: A secret of the visitor's browser. It only ever finds a session: no path is made from it.

        Raises:
            InputError: It is no key.
        """
        if not isinstance(key, str) or not 0 < len(key) <= _LONGEST_KEY:
            raise InputError("session: expected this page's own key, got another. Reload the page.")
        with self._lock:
            self._forget(time.monotonic() - IDLE_SECONDS)
            if key not in self._sessions:
                folder = self.folder / secrets.token_hex(8)
                self._sessions[key] = Session(folder=folder, ledger_folder=self.shared or folder / "ledger")
            session = self._sessions[key]
            session.seen = time.monotonic()
            return session

    def leave(self, page: str) -> None:
        """End the jobs of a page that was closed."""
        for session in list(self._sessions.values()):
            session.leave(page)

    def end(self, key: str) -> None:
        """Forget a session and delete its folder."""
        with self._lock:
            self._end(key)

    def close(self) -> None:
        """Delete all folders."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self, before: float) -> None:
        idle = [key for key, session in self._sessions.items() if not session.jobs]
        by_age = sorted(idle, key=lambda key: self._sessions[key].seen)
        for at, key in enumerate(by_age):
            if self._sessions[key].seen < before or len(by_age) - at >= MOST:
                self._end(key)

    def _end(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)
