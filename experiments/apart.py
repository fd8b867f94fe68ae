"""Rows of an experiment, each measured in a process of its own: each has a peak of memory, and may fail alone."""

import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.console import Console


def measured_apart(module: str, rows: Mapping[str, Sequence[str]], chosen_by: Collection[str]) -> int:
    """Measure rows in a process each, and return 1 if one failed.

    Args:
        module: Module that measures a row.
        rows: Arguments that choose a row, by its label.
        chosen_by: Options that choose rows; all others of this process's command are passed on.
    """
    shared = list(_without(sys.argv[1:], chosen_by))
    failed = False
    for i, (label, arguments) in enumerate(rows.items(), start=1):
        Console().print(f"{i}/{len(rows)}: {label}", highlight=False, markup=False)
        command = [sys.executable, "-m", module, *arguments, *shared]
        failed |= subprocess.run(command, check=False).returncode != 0
    return int(failed)


def _without(arguments: Sequence[str], options: Collection[str]) -> Iterator[str]:
    """Give the arguments of a command without some options and their values."""
    left_out = False
    for argument in arguments:
        if argument.startswith("--"):
            left_out = argument.partition("=")[0] in options
        if not left_out:
            yield argument
