"""Measured verdicts on the pieces of trained erasers, one line each."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from ..io.csv_rows import csv_table

SEAMS = ("objective", "term", "transform", "selector", "finish", "loop")
"""Nouns of the extension points whose pieces are measured, and the settings of the loop."""
NOT_MEASURED = "not measured yet"
_FILE = "verdicts.csv"
_COLUMNS = ("seam", "piece", "verdict")


def verdict(seam: str, piece: str) -> str:
    """Return the verdict on a piece, such as "near +0.03 [0.01, 0.05], 1.2 x time, n = 6", or that there is none."""
    return verdicts().get((seam, piece), NOT_MEASURED)


@cache
def verdicts() -> Mapping[tuple[str, str], str]:
    """Return the verdicts by seam and name of the piece, from `configs/verdicts.csv`.

    Raises:
        InputError: The file is damaged.
    """
    with resources.as_file(resources.files("erasure.configs") / _FILE) as path:
        return read_verdicts(path)


def read_verdicts(path: Path) -> dict[tuple[str, str], str]:
    """Return the verdicts of a file with the columns seam, piece and verdict.

    Raises:
        InputError: The file cannot be read, or has other columns.
    """
    return {(seam, piece): line for seam, piece, line in csv_table(path, _COLUMNS)}
