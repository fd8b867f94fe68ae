"""Facts to choose an eraser by: those that its class declares, and its measures."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from ..erasers import Eraser, eraser_class, eraser_names
from ..erasers.stack import Stack
from ..io.csv_rows import csv_table

HEADINGS = (
    "name",
    "kind",
    "needs",
    "seconds",
    "undone exactly",
    "exact in sequences",
    "exports",
    "licence",
    "measured",
)
"""Headings of `Overview.cells`."""
NOTES = (
    "Needs: work of a fit beside reading text. Seconds: of a fit on the tiny world. Undone exactly: in any order, or"
    " the last first, where later removals were fitted on top. Licence: of the official code, for information; none of"
    " it is here. `erasure methods NAME` lists settings."
)
"""Meaning of the headings."""
NOTHING = "–"
_FILE = "measured.csv"
_COLUMNS = ("eraser", "seconds", "verdict")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Facts about one eraser.

    Attributes:
        name: Name.
        kind: Part of the model that its edit acts on.
        work: Work of a fit: "training", "images", both or neither.
        seconds: Seconds of a fit on the tiny world; "" where none was measured.
        undone: "in any order", or "last first" where a later removal was fitted on top.
        exact: Whether a sequence of removals equals their removal at once.
        exports: Formats that hold it.
        licence: Licence of the official code, for information; "" without code.
        verdict: Measured verdict; "" without one.
    """

    name: str
    kind: str
    work: str
    seconds: str
    undone: str
    exact: bool
    exports: str
    licence: str
    verdict: str

    def cells(self) -> tuple[str, ...]:
        """Return the row of a table."""
        cells = (
            self.name,
            self.kind,
            self.work,
            self.seconds,
            self.undone,
            "yes" if self.exact else "no",
            self.exports,
            self.licence,
            self.verdict,
        )
        return tuple(cell or NOTHING for cell in cells)


def overviews() -> list[Overview]:
    """Return the facts about every eraser, in the order of the names."""
    return [overview(eraser_class(name)) for name in eraser_names()]


def overview(kind: type[Eraser]) -> Overview:
    """Return the facts about one eraser with its default settings."""
    seconds, verdict = measured().get(kind.name, ("", ""))
    sampling, independent = kind.stage == "sampling", kind.depends_on == "text"
    return Overview(
        name=kind.name,
        kind="as its parts" if issubclass(kind, Stack) else kind.stage,
        work=", ".join(sorted(kind.work)),
        seconds=seconds,
        undone="last first" if kind.depends_on == "weights" else "in any order",
        exact=independent,
        exports="pipeline, edit" if sampling else "all",
        licence=kind.licence,
        verdict=verdict,
    )


@cache
def measured() -> Mapping[str, tuple[str, str]]:
    """Return seconds and verdict by eraser, from `configs/measured.csv`, which `make tables` writes from the results.

    Raises:
        InputError: The file is damaged.
    """
    with resources.as_file(resources.files("erasure.configs") / _FILE) as path:
        return read_measured(path)


def read_measured(path: Path) -> dict[str, tuple[str, str]]:
    """Return seconds and verdict by eraser, of a file with the columns eraser, seconds and verdict.

    Raises:
        InputError: The file cannot be read, or has other columns.
    """
    return {eraser: (seconds, verdict) for eraser, seconds, verdict in csv_table(path, _COLUMNS)}
