"""Prompt lists as published: CSV files, read so that no row is lost, shifted or mistaken for nothing."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from erasure.errors import InputError


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


def read_list(path: str | Path, columns: Sequence[str], *, limit: int | None = None) -> list[ListRow]:
    """Read the rows of a CSV file with a header.

    Cells may hold commas and line breaks, in quotes. Columns that are not asked for are left alone, as is an unnamed
    leading index. Empty lines are skipped.

    Args:
        path: The file, in UTF-8.
        columns: Those that must be there.
        limit: Number of rows from the top; None reads all.

    Raises:
        InputError: It cannot be read, a column is missing, a row has more or fewer cells than the header (as where a
            comma was not quoted), it holds no rows, or fewer than `limit`.
    """
    name = Path(path).name
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [column.strip() for column in next(reader, [])]
            if missing := [column for column in columns if column not in header]:
                raise InputError(f"{name}: expected a column {missing[0]!r}, got {', '.join(map(repr, header))}.")
            rows: list[ListRow] = []
            for cells in reader:
                if limit is not None and len(rows) == limit:
                    break
                if not cells:
                    continue
                where = f"{name} line {reader.line_num}"
                if len(cells) != len(header):
                    raise InputError(
                        f"{where}: expected {len(header)} cells, got {len(cells)}. Quote cells that hold a comma."
                    )
                rows.append(ListRow(where=where, cells=dict(zip(header, map(str.strip, cells), strict=True))))
    except OSError as error:
        raise InputError(
            f"{path}: expected a prompt list, got {error.strerror!r}. Give the path of the file."
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{name}: expected CSV in UTF-8, got something else ({error}).") from None
    if not rows or (limit is not None and len(rows) < limit):
        raise InputError(f"{name}: expected {'rows' if limit is None else f'{limit} rows'}, got {len(rows)}.")
    return rows
