"""Rows of CSV files, read strictly: a fault of the file is an error with its line, never another table."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars", "，": "full-width commas"}


@dataclass(frozen=True, kw_only=True)
class CsvRow:
    """One row of a CSV file.

    Attributes:
        where: Name of the file and number of the row's first line, for errors.
        cells: Cells as they are written.
    """

    where: str
    cells: tuple[str, ...]

    def stripped(self) -> "CsvRow":
        """Return the row with cells without outer blanks."""
        return replace(self, cells=tuple(map(str.strip, self.cells)))


def csv_rows(path: Path, where: str, *, spaced: bool = False) -> Iterator[CsvRow]:
    """Yield the rows of a CSV file in UTF-8, blank lines included; cells may hold commas and line breaks, in quotes.

    Args:
        path: The file.
        where: Name of the file in errors.
        spaced: Whether a quote counts as one after blanks, too, as in `cat, "dog, small"`.

    Raises:
        InputError: The file cannot be read or is not in UTF-8, or a quote is not closed.
    """
    reader = csv.reader(io.StringIO(_text_of(path, where), newline=""), strict=True, skipinitialspace=spaced)
    while True:
        line = f"{where} line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{line}: expected CSV in UTF-8, got a quote that is not closed or another fault ({error})."
                " Close the quote, or write a quote within a quoted cell twice."
            ) from None
        yield CsvRow(where=line, cells=tuple(cells))


def csv_table(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """Return the cells of a CSV file in the columns of these names, a list a row; blank lines are left out.

    Raises:
        InputError: See `csv_rows` and `check_columns`.
    """
    heading, *rows = [row for row in csv_rows(path, path.name) if any(row.cells)]
    check_columns(heading, columns)
    places = [heading.cells.index(column) for column in columns]
    return [[row.cells[place] for place in places] for row in rows]


def check_columns(heading: CsvRow, required: Sequence[str]) -> None:
    """Refuse a heading without the required columns, with a column twice, or with another delimiter than the comma.

    Raises:
        InputError: It is such a heading.
    """
    cells = heading.cells
    if missing := [column for column in required if column not in cells]:
        named = ", ".join(map(repr, cells)) or "an empty line"
        other = next((words for sign, words in _DELIMITERS.items() if len(cells) == 1 and sign in cells[0]), None)
        remedy = (
            f"Separate cells by commas, not {other}." if other else "Add or rename the column, or give another list."
        )
        raise InputError(f"{heading.where}: expected a column {missing[0]!r}, got {named}. {remedy}")
    if doubled := [column for column in required if cells.count(column) > 1]:
        raise InputError(f"{heading.where}: expected each column once, got {doubled[0]!r} twice. Delete one.")


def check_delimiter(row: CsvRow, cell: str, allowed: str = "") -> None:
    """Refuse a cell with a sign that delimits cells elsewhere.

    Args:
        row: The row.
        cell: One of its cells.
        allowed: Such signs that the cell may hold.

    Raises:
        InputError: The cell holds another one.
    """
    for sign, words in _DELIMITERS.items():
        if sign in cell and sign not in allowed:
            raise InputError(f"{row.where}: expected cells separated by commas, not {words}, got {cell!r}.")


def _text_of(path: Path, where: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        option = where.removesuffix(f" {str(path)!r}")
        raise InputError(
            f"{option}: expected a file to read, got {str(path)!r} ({error.strerror}). Check the path."
        ) from None
    if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise InputError(f"{where} line {line}: expected CSV in UTF-8, got a null character. Save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{where} line {line}: expected CSV in UTF-8, got the byte {content[error.start]:#04x}. Save it as UTF-8."
        ) from None
