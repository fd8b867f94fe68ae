"""What experiments on the tiny world have in common: bars while they work, and how they are recorded."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from erasure.erasers import Step
from erasure.io.files import write_whole

Progressed = Callable[[str, int, int], None]
"""Told what is being made, how many more are done, and how many there are."""


@contextmanager
def progress_bars() -> Iterator[Progressed]:
    """Show a bar for each thing that is being made, on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, more: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.advance(tasks[what], more)

        yield progress


def by_step(progress: Progressed, what: str) -> Callable[[Step], None]:
    """Return what tells of a fit, whose steps say how many are done and not how many more."""
    done = 0

    def on_step(step: Step) -> None:
        nonlocal done
        progress(f"{what}: {step.stage}", max(0, step.step - done), step.total)
        done = step.step if step.step < step.total else 0

    return on_step


def plain_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return a command's options without places on a machine."""
    return {key: value for key, value in vars(options).items() if not isinstance(value, Path)}


def write_record(record: Mapping[str, Any], folder: Path) -> Path:
    """Write `run.json` and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = folder / "run.json"
    write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
