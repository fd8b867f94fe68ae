"""Prompt lists as published: CSV files, read so that no row is lost, shifted or mistaken for nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from erasure.errors import InputError
from erasure.io.csv_rows import CsvRow, check_columns, csv_rows

_CASES = ("case_number", "case_num", "image_id", "coco_id")
"""Columns that name a row, the first that is there."""
_NUMBERS = ("case_number", "evaluation_seed")
"""Columns of whole numbers, by which a row with unquoted commas is told from one with shifted cells."""


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """One row of a list.

    Attributes:
        where: File and line, for errors.
        cells: By column, as text without outer blanks. "Null" and "nan" are words, not the absence of one.
    """

    where: str
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a cell that must not be empty.

        Raises:
            InputError: It is.
        """
        if not self.cells[column]:
            raise InputError(f"{self.where}: expected a text as {column!r}, got an empty one. Mend the list.")
        return self.cells[column]

    def whole(self, column: str) -> int:
        """Return a cell as a whole number from 0 on.

        Raises:
            InputError: It is none.
        """
        cell = self.cells[column]
        if not (cell.isascii() and cell.isdigit()):
            raise InputError(f"{self.where}: expected a whole number from 0 on as {column!r}, got {cell!r}.")
        return int(cell)


def read_list(
    path: str | Path, columns: Sequence[str], *, limit: int | None = None, unquoted: str = ""
) -> list[ListRow]:
    """Read the rows of a CSV file with a heading.

    Cells may hold commas and line breaks, in quotes. Columns that are not named are left alone, as is an unnamed
    leading index. Empty lines are skipped. A list without `case_number` has its cases in another column of `_CASES`, as
    ESD's COCO list.

    Args:
        path: The file, in UTF-8.
        columns: Those that must be there.
        limit: Number of rows from the top; None reads all.
        unquoted: Column that takes the cells beyond the heading's, where a published list leaves its commas unquoted;
            "" for none.

    Raises:
        InputError: It cannot be read, a column is missing or doubled, a row has another number of cells than the
            heading, it holds no rows, or fewer than `limit`; the error names the line.
    """
    name = Path(path).name
    source = csv_rows(Path(path), str(path) if not Path(path).is_file() else name)
    heading = next(source, CsvRow(where=f"{name} line 1", cells=())).stripped()
    heading = replace(heading, cells=_with_case(heading.cells) if "case_number" in columns else heading.cells)
    check_columns(heading, columns)
    rows: list[ListRow] = []
    for row in source:
        if limit is not None and len(rows) == limit:
            break
        if any(map(str.strip, row.cells)):
            cells = _cells(row, heading.cells, unquoted)
            rows.append(ListRow(where=row.where, cells=dict(zip(heading.cells, map(str.strip, cells), strict=True))))
    if not rows or (limit is not None and len(rows) < limit):
        expected = "rows" if limit is None else f"{limit} rows"
        raise InputError(f"{name}: expected {expected}, got {len(rows)}. Give the whole list.")
    return rows


def _with_case(heading: tuple[str, ...]) -> tuple[str, ...]:
    """Return a heading in which the column with the name of a row is `case_number`."""
    case = next((column for column in _CASES if column in heading), None)
    return tuple("case_number" if column == case else column for column in heading)


def _cells(row: CsvRow, heading: Sequence[str], unquoted: str) -> tuple[str, ...]:
    """Return a row's cells, one for each column; see `read_list`."""
    more = len(row.cells) - len(heading)
    if more > 0 and unquoted in heading:
        start = heading.index(unquoted)
        end = start + more + 1
        joined = (*row.cells[:start], ",".join(row.cells[start:end]), *row.cells[end:])
        # A comma of another cell would shift the numbers.
        if all(joined[heading.index(column)].strip().isdigit() for column in _NUMBERS if column in heading):
            return joined
    if more:
        raise InputError(
            f"{row.where}: expected {len(heading)} cells, got {len(row.cells)}. Quote cells that hold a comma."
        )
    return row.cells
