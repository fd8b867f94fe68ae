"""Rows of an experiment, each measured in a process of its own: each has a peak of memory, and may fail alone."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from rich.console import Console
from typing_extensions import TypedDict

from erasure.errors import InputError
from erasure.io.files import check_places, make_folder
from erasure.io.json_files import json_digest, record_if_whole
from erasure.progress import OnProgress, progress_bars

from .experiment import in_one_line, plain_options, write_record


class PlannedRow(Protocol):
    """A row of an experiment."""

    @property
    def label(self) -> str:
        """Name of the row in progress."""
        ...

    def folder(self, root: Path) -> Path:
        """Return the row's folder below another."""
        ...

    def command(self) -> Sequence[str]:
        """Return the arguments that measure it."""
        ...

    def facts(self, options: argparse.Namespace) -> Mapping[str, Any]:
        """Return the parts of its record that say what is measured; with others it is another row's."""
        ...


_Row = TypeVar("_Row", bound=PlannedRow)
_OF_LATER_ROWS: Final = ("gold",)
"""Options that may differ between the rows of one folder."""


class _Record(TypedDict):
    options: dict[str, Any]


def measure_missing(
    name: str,
    options: argparse.Namespace,
    planned: Callable[[argparse.Namespace], Sequence[_Row]],
    experiment: Callable[[_Row, argparse.Namespace, OnProgress], dict[str, Any]],
    chosen_by: Collection[str],
    summary: Callable[[Mapping[str, Any]], Iterable[str]] = lambda _: (),
) -> None:
    """Measure the rows without a record: one in this process, several in processes of their own, which end this one.

    Args:
        name: Name of the experiment's module.
        options: Options of the command; records are written below `out`.
        planned: Returns the rows that are asked for.
        experiment: Returns the record of a row.
        chosen_by: Options that choose rows.
        summary: Returns lines to print about a record.
    """
    torch.set_num_threads(1)  # results differ between numbers of threads
    with in_one_line(name):
        asked_for = planned(options)
        if not asked_for:
            raise InputError("expected options that fit a row, got none that do. See --help for what there is.")
        for row in asked_for:
            check_places(row.folder(options.out), "run.json")
        rows = [row for row in asked_for if not _is_done(row, options, chosen_by)]
        if len(rows) < len(asked_for):
            Console().print(f"{len(asked_for) - len(rows)} of {len(asked_for)} rows are in {options.out}", markup=False)
        if not rows:
            return
        if len(rows) > 1:
            commands = {row.label: row.command() for row in rows}
            sys.exit(measured_apart(f"experiments.{name}", commands, chosen_by))
        [row] = rows
        with progress_bars() as on_progress:
            record = experiment(row, options, on_progress)
        make_folder(row.folder(options.out))
        for line in summary(record):
            Console().print(line, highlight=False, markup=False)
        Console().print(str(write_record(record, row.folder(options.out))), markup=False)


def _is_done(row: PlannedRow, options: argparse.Namespace, chosen_by: Collection[str]) -> bool:
    """Return True if a row has a whole record with the facts that it has now.

    Raises:
        InputError: It is one of other options.
    """
    file = row.folder(options.out) / "run.json"
    record = record_if_whole(file, _Record)
    if record is None:
        return False
    check_options(file, record["options"], options, chosen_by)
    return all(json_digest(record.get(key)) == json_digest(value) for key, value in row.facts(options).items())


def check_options(
    file: Path, known: Mapping[str, Any], options: argparse.Namespace, chosen_by: Collection[str]
) -> None:
    """Refuse a record of other options; one that it does not have may have been any.

    Args:
        file: File of the record.
        known: Options of the record.
        options: Options of the command.
        chosen_by: Options that choose rows, and may differ.

    Raises:
        InputError: An option differs.
    """
    left_out = {*(option.removeprefix("--").replace("-", "_") for option in chosen_by), *_OF_LATER_ROWS}
    for key, value in plain_options(options).items():
        if key not in left_out and known.get(key, value) != value:
            raise InputError(
                f"{file}: expected a record with {key}={value}, got one with {known[key]}."
                " Name another --out, or delete it."
            )


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
