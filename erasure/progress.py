"""Progress of work in stages: the report, a counter that makes reports, and the bar of the terminal."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console

from .errors import ErasureError


@dataclass(frozen=True)
class Progress:
    """One report of work that takes a while.

    Attributes:
        done: Number of finished items of the stage, >= 0.
        total: Number of items of the stage; 0 if it is not known.
        stage: Name of the stage: "fit", or "images" that a method samples before it. Each stage counts from 0.
        loss: Loss of the last item, where there is one.
        parts: Weighted terms that add up to the loss, the main one first.
        note: Short text about the last item, for items that differ.
    """

    done: int
    total: int
    stage: str = "fit"
    loss: float | None = None
    parts: tuple[float, ...] = ()
    note: str = ""


class StoppedError(ErasureError):
    """The whole work ends, by its receiver or for want of a place; what catches the errors of a part lets it pass."""


OnProgress = Callable[[Progress], None]
"""Receives each report of a piece of work."""


def staged(on_progress: OnProgress | None, stage: str) -> OnProgress | None:
    """Return a receiver that passes every report on under another stage name; None stays None."""
    if on_progress is None:
        return None
    return lambda progress: on_progress(replace(progress, stage=stage))


class ProgressCounter:
    """Number of finished items of one stage; every change is reported.

    Args:
        on_progress: Receiver of the reports; None drops them.
        total: Number of items of the stage.
        stage: Name of the stage.
    """

    def __init__(self, on_progress: OnProgress | None, total: int, stage: str) -> None:
        self.done = 0
        self._on_progress, self._total, self._stage = on_progress, total, stage

    def add(self, n: int = 1) -> None:
        """Count n more finished items and report them; 0 reports nothing."""
        self.done += n
        if n and self._on_progress is not None:
            self._on_progress(Progress(self.done, self._total, self._stage))


@contextmanager
def progress_bars(console: Console | None = None) -> Generator[OnProgress, None, None]:
    """Show one bar a stage on the terminal for the length of a `with`; a finished stage's bar goes away.

    Args:
        console: Console to draw on; the default is stderr.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    note = TextColumn("{task.fields[note]}", markup=False)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    console = console or Console(stderr=True)
    # What goes to stdout must get there when that is a file, bar or no bar.
    with RichProgress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(progress: Progress) -> None:
            stage, total = progress.stage, progress.total or None
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=progress.done, total=total, note=progress.note)
            if total is not None and progress.done >= total:
                bars.remove_task(tasks.pop(stage))

        yield on_progress
