"""Work that takes a while: told of as it goes on, and stopped between two of its steps."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from erasure.erasers import Step
from erasure.errors import ErasureError

Result = TypeVar("Result")
_LOOK_SECONDS = 0.2
"""How often the page is told."""


class StoppedError(ErasureError):
    """Someone pressed Cancel, or left."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        what: What is being done.
        done: How many of it are done.
        total: How many there are; 0 where that is not known.
        seconds_left: Of this stage, by its pace so far; None where there is none yet.
    """

    what: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None


class Track:
    """What a job tells of itself, and whether it may go on."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._now = Progress(what="waiting for a turn")
        self._began = time.monotonic()

    @property
    def now(self) -> Progress:
        """How far the job is, with the time left as of now."""
        at = self._now
        if not at.done or not at.total:
            return at
        pace = (time.monotonic() - self._began) / at.done
        return Progress(what=at.what, done=at.done, total=at.total, seconds_left=pace * (at.total - at.done))

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        """Tell what is being done.

        Raises:
            StoppedError: The job shall end.
        """
        if what != self._now.what or done < self._now.done:
            self._began = time.monotonic()
        self._now = Progress(what=what, done=done, total=total)
        self.check()

    def check(self) -> None:
        """Raise StoppedError if the job shall end."""
        if self.stop.is_set():
            raise StoppedError("Cancelled. What was finished before stands, nothing is half done.")

    def step(self, step: Step) -> None:
        """Tell of a step of a fit."""
        self.say({"fit": "fitting"}.get(step.stage, step.stage), step.step, step.total)

    def picture(self, what: str, more: int, total: int) -> None:
        """Tell of pictures, as `eval` counts them: by how many more."""
        same = what == self._now.what and self._now.done < self._now.total
        self.say(what, (self._now.done if same else 0) + more, total)

    @contextmanager
    def holding(self, lock: threading.RLock) -> Iterator[None]:
        """Hold a lock, and wait for it no longer than the job may go on."""
        while not lock.acquire(timeout=_LOOK_SECONDS):
            self.check()
        try:
            self.check()
            yield
        finally:
            lock.release()


class _Outcome(Generic[Result]):
    """What a thread leaves behind."""

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
    """Do the work in a thread; give its progress as it changes, and its result last.

    Whoever stops listening ends the work at its next step.

    Raises:
        StoppedError: It was stopped.
    """
    outcome = _Outcome(work)
    thread = threading.Thread(target=outcome.run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            yield track.now
            thread.join(_LOOK_SECONDS)
    finally:
        if thread.is_alive():
            track.stop.set()
    yield outcome.result
