"""Jobs: work in a thread, with progress, that can be stopped between two steps."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import Generic, TypeVar

from erasure.progress import Progress, StoppedError

Result = TypeVar("Result")
_LOOK_SECONDS = 0.2
"""Interval between two looks at a job, in seconds."""
_REST = 20
"""Share of its time that a job has passed before the page is updated again: one part in so many.

A browser needs a tenth of a second for an update, on a busy machine more. It would fall behind a steady stream of them,
and show a job's end, or that it was cancelled, long after.
"""
_LEAST_REST, _MOST_REST = 0.5, 5.0  # seconds


class Track:
    """Progress of a job and its stop signal.

    Args:
        stop: Event that ends the job.
        minutes: Longest time that the job may hold a lock, in minutes.
    """

    def __init__(self, stop: threading.Event, minutes: float = inf) -> None:
        self.stop = stop
        self._minutes, self._end = minutes, inf
        self._now = Progress(0, 0, "waiting for a turn")
        self._began = time.monotonic()

    @property
    def now(self) -> Progress:
        """The last report, with the remaining time as its note."""
        last = self._now
        if not last.done or last.done >= last.total:
            return last
        pace = (time.monotonic() - self._began) / last.done
        return replace(last, note=f"{_duration(pace * (last.total - last.done))} left")

    def say(self, stage: str, done: int = 0, total: int = 0) -> None:
        """Report a stage of the job; see `report`."""
        self.report(Progress(done, total, stage))

    def report(self, progress: Progress) -> None:
        """Receive a report of the job; the `on_progress` of all its parts.

        Raises:
            StoppedError: The visitor pressed Cancel or left the page, or the time of the job is over.
        """
        stage = {"fit": "fitting"}.get(progress.stage, progress.stage)
        if stage != self._now.stage or progress.done < self._now.done:
            self._began = time.monotonic()
        self._now = replace(progress, stage=stage, note="")
        self.check()

    def check(self) -> None:
        """Raise StoppedError if the job was stopped, or its time is over."""
        if self.stop.is_set():
            raise StoppedError("Cancelled. Finished entries stay; nothing is half done.")
        if time.monotonic() > self._end:
            raise StoppedError(
                f"Stopped after {self._minutes:g} minutes, the limit of this app. Finished entries stay; nothing is"
                " half done. Take fewer steps or images."
            )

    @contextmanager
    def holding(self, lock: threading.RLock) -> Generator[None]:
        """Hold a lock; waiting for it ends when the job is stopped. The time of the job starts with the first one."""
        while not lock.acquire(timeout=_LOOK_SECONDS):
            self.check()
        try:
            self._end = min(self._end, time.monotonic() + 60 * self._minutes)
            self.check()
            yield
        finally:
            lock.release()


class _Outcome(Generic[Result]):
    """Result or error of a thread."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    @property
    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result[0]


def followed(work: Callable[[], Result], track: Track) -> Iterator[Progress | Result]:
    """Run the work in a thread; yield its progress, and its result last.

    Closing the iterator stops the work at its next step.

    Raises:
        StoppedError: The job was stopped.
    """
    outcome = _Outcome(work)
    thread = threading.Thread(target=outcome.run, daemon=True)
    thread.start()
    began = time.monotonic()
    shown: Progress | None = None
    due = began
    try:
        while thread.is_alive():
            now, clock = track.now, time.monotonic()
            if now != shown and clock >= due:
                yield now
                shown, due = now, clock + min(max((clock - began) / _REST, _LEAST_REST), _MOST_REST)
            thread.join(_LOOK_SECONDS)
    finally:
        if thread.is_alive():
            track.stop.set()
    yield outcome.result


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 90 else f"about {seconds / 60:.0f} min"
