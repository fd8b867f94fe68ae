"""Sessions: each visitor has a ledger and a folder of their own, deleted after a long absence."""

import atexit
import math
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from erasure.concept import Concept
from erasure.errors import InputError
from erasure.ledger import Ledger, is_ledger

from .results import Attended, BeforeAfter, Exported, Report

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

IDLE_SECONDS = 2 * 3600.0
MOST = 500
LEFT_SECONDS = 60.0
"""Seconds for which a closed page is remembered, longer than the start of a job takes."""
_LONGEST_KEY = 100


@dataclass(kw_only=True)
class Session:
    """Session of one visitor.

    Attributes:
        folder: Folder of the session.
        ledger_folder: Folder of the ledger.
        seen: Time of the last request, by `time.monotonic`.
        erased: Comparison of the last removal, shown by the tab Erase.
        compared: The last comparison.
        attended: The last attention maps.
        measured: The last measurement.
        audited: The last audit.
        exported: The last export.
        suggested: Texts that the page suggests, by the field's name.
        typed: Names of the fields in which the visitor typed a text of their own.
        jobs: Number of running jobs.
    """

    folder: Path
    ledger_folder: Path
    seen: float = field(default_factory=time.monotonic)
    erased: BeforeAfter | None = None
    compared: BeforeAfter | None = None
    attended: Attended | None = None
    measured: Report | None = None
    audited: Report | None = None
    exported: Exported | None = None
    suggested: dict[str, list[str]] = field(default_factory=dict)
    typed: set[str] = field(default_factory=set)
    jobs: int = 0
    _stops: dict[tuple[str, str], threading.Event] = field(default_factory=dict)
    _count: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a job for the length of a `with`; meanwhile the session is kept."""
        with self._count:
            self.jobs += 1
        try:
            yield
        finally:
            with self._count:
                self.jobs -= 1

    def stop(self, page: str, job: str) -> threading.Event:
        """Return the event that ends a job of one of the visitor's pages."""
        return self._stops.setdefault((page, job), threading.Event())

    def leave(self, page: str) -> None:
        """End all jobs of a page that was closed."""
        for (owner, _), stop in list(self._stops.items()):
            if owner == page:
                stop.set()

    def ledger(self) -> Ledger | None:
        """Return the ledger; None before the first removal.

        Raises:
            LedgerError: The ledger is damaged.
        """
        return Ledger.open(self.ledger_folder) if is_ledger(self.ledger_folder) else None

    def standing(self) -> tuple[str, ...]:
        """Return the ids of the standing entries."""
        ledger = self.ledger()
        return () if ledger is None else tuple(entry.id for entry in ledger.standing)

    def removed(self) -> list[Concept]:
        """Return the concepts that are removed, the last one last."""
        ledger = self.ledger()
        return [] if ledger is None else [concept for entry in ledger.standing for concept in entry.concepts]

    def open_ledger(self, pipe: "DiffusionPipeline", model: str) -> Ledger:
        """Return the ledger, created if it does not exist.

        Raises:
            LedgerError: Its folder cannot be written, or it is damaged.
        """
        return Ledger.open_or_create(self.ledger_folder, pipe, model)


class Sessions:
    """Sessions of all visitors.

    Args:
        ledger: Ledger shared by all visitors; None is one for each.
    """

    def __init__(self, ledger: Path | None = None) -> None:
        self.shared = ledger
        self.folder = Path(tempfile.mkdtemp(prefix="erasure-app-"))
        self._sessions: dict[str, Session] = {}
        self._left: dict[str, float] = {}  # when a page was closed
        self._lock = threading.Lock()
        atexit.register(self.close)

    def of(self, key: str) -> Session:
        """Return the session of a key, a new one for a new key; idle sessions are deleted.

        Args:
            key: Secret of the visitor's browser. It identifies a session and is not part of any path.

        Raises:
            InputError: The key has another form.
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
        """End the jobs of a page that was closed, those included that are only about to start: see `has_left`."""
        now = time.monotonic()
        with self._lock:
            self._left = {known: when for known, when in self._left.items() if now - when < LEFT_SECONDS}
            self._left[page] = now
        for session in list(self._sessions.values()):
            session.leave(page)

    def has_left(self, page: str) -> bool:
        """Return True if a page was closed a moment ago. A job asks after its stop event is clear."""
        return time.monotonic() - self._left.get(page, -math.inf) < LEFT_SECONDS

    def end(self, key: str) -> None:
        """Delete a session and its folder, unless a job of it still runs: that is to end the session once more."""
        with self._lock:
            if key in self._sessions and not self._sessions[key].jobs:
                self._end(key)

    def close(self) -> None:
        """Delete all folders."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self, before: float) -> None:
        idle = [key for key, session in self._sessions.items() if not session.jobs]
        by_age = sorted(idle, key=lambda key: self._sessions[key].seen)
        for i, key in enumerate(by_age):
            if self._sessions[key].seen < before or len(by_age) - i >= MOST:
                self._end(key)

    def _end(self, key: str) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)
