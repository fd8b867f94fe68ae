"""Lists of removal requests: CSV files, and the families that come with the library."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..concept import Concept, normalized
from ..errors import ErasureError, InputError, unknown_name
from ..io.csv_rows import CsvRow, check_columns, check_delimiter, csv_rows
from ..io.text import shortened

_LONGEST_NAME = 255  # bytes; a system refuses to look for longer ones
_CURLED = ("“", "”", "„")
_COLUMNS = {
    "concept": "target",
    "target": "target",
    "anchor": "anchor",
    "preserve": "preserve",
    "kind": "kind",
    "aliases": "aliases",
}
"""Field of a concept by the name of its column."""
_OTHER_COLUMNS = {
    *("", "index", "id", "seed", "prompt", "artist", "class", "category", "source", "label", "labels", "name", "text"),
    *("type", "erase", "forget", "retain", "keep", "guide", "mapping"),
}
"""Columns of lists for other programs; a line of nothing else is a heading."""
_OTHER_STARTS = ("# ", "sep=", "- ", "* ", '["', '{"')
"""Starts of lines in no list of names: comments, spreadsheets' marks, lists of YAML and Markdown, JSON."""
_OTHER_COLUMN = re.compile(r"\w+_(id|idx|num|number|seed|str|guidance|prompts?)")
"""Names that no concept has: `case_number`, `evaluation_seed`, "sensitive prompt"; a line with one is a heading."""


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """Read a CSV list of removal requests: the concept, and optionally its anchor and preserved concepts (`;` between).

    A first line with the name of a column names all of them; without one they are concept, anchor, preserve.

    Raises:
        InputError: The file cannot be read, holds no concept, or has an unknown, doubled or missing column, an empty
            line between others, an unclosed quote, another delimiter than the comma, or a line without a concept or
            with a concept as its own anchor; the error names the line.
    """
    return [concept for _, concept in _numbered_concepts(path)]


def lines_of(lists: Sequence[Path]) -> dict[str, str]:
    """Return the file and line of each request of some lists, by its normalized target.

    Raises:
        InputError: See `read_concepts`.
    """
    return {normalized(concept["target"]): where for path in lists for where, concept in _numbered_concepts(path)}


def list_path(name: str) -> Path:
    """Return the file of a list of removal requests, given by the name of a shipped list or by its path.

    Raises:
        InputError: It is neither.
    """
    known = _lists()
    path = known.get(normalized(name), Path(name))
    if max(map(len, os.fsencode(name).split(b"/"))) > _LONGEST_NAME or not path.is_file():
        got, names = shortened(name), ", ".join(sorted(known))
        raise InputError(
            f"concepts: expected a list's name ({names}) or file, got {got}. For a concept write [{{target: {got}}}]."
        )
    return path


def families_expanded(concepts: Sequence[Any]) -> list[Any]:
    """Replace a family word ("weapon", "weapons") by the requests of its list, with its other fields for each."""
    known = _lists()
    expanded: list[Any] = []
    for entry in concepts:
        word = (
            normalized(entry["target"]) if isinstance(entry, Mapping) and isinstance(entry.get("target"), str) else ""
        )
        name = next((name for name in (word, f"{word}s") if name in known), None)
        if name is None:
            expanded.append(entry)
        else:
            shared = {key: value for key, value in entry.items() if key not in ("target", "aliases")}
            expanded += [{**member, **shared} for member in read_concepts(known[name])]
    return expanded


def _lists() -> dict[str, Path]:
    folder = Path(str(resources.files("erasure.configs")))
    return {path.stem: path for path in sorted(folder.glob("*/*.csv"))}


def _numbered_concepts(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the requests of a list, each with the name of the file and the number of its line."""
    where = f"--from {str(path)!r}"
    rows: list[CsvRow] = []
    for row in csv_rows(path, where, spaced=True):
        if not rows:  # of another format, whose quotes are no quotes here
            check_delimiter(row, ",".join(row.cells), ";")
        rows.append(row.stripped())
    while rows and not any(rows[-1].cells):
        rows.pop()  # blank lines at the end say nothing
    for row in rows:
        _check_row(row)
    columns, exact = ["target", "anchor", "preserve"], False
    if rows and _is_heading(rows[0].cells):
        columns, exact = _columns(rows.pop(0)), True
    for row in rows:
        if len(row.cells) > 1 and all(normalized(cell) in _COLUMNS for cell in row.cells):
            raise InputError(f"{row.where}: expected a concept, got a second line of columns. Delete it or move it up.")
    concepts = [(row.where, _concept_of_row(row, columns, exact=exact)) for row in rows]
    if not concepts:
        raise InputError(f"{where}: expected a concept a line, got none. Write one on each line.")
    return concepts


def _check_row(row: CsvRow) -> None:
    """Refuse an empty line, and a cell with a line break or half a pair of quotes."""
    if not any(row.cells):
        raise InputError(f"{row.where}: expected a concept, got an empty line. Delete it.")
    if row.cells[0].startswith(_OTHER_STARTS):
        raise InputError(
            f"{row.where}: expected a concept, got {row.cells[0]!r}, a line of another format. Write the concept alone."
        )
    for cell in row.cells:
        if cell[:1] in _CURLED or cell[-1:] in _CURLED:
            raise InputError(f'{row.where}: expected straight quotes, got {cell!r}. Write " or no quotes.')
        if len(cell.splitlines()) > 1 or cell.count('"') % 2:
            raise InputError(f"{row.where}: expected quotes closed on their line, got {cell!r}. Close the quote.")


def _is_heading(cells: Sequence[str]) -> bool:
    """Return True for a line that names columns: it holds the name of one, or nothing but words like such names."""
    names = [normalized(cell).replace(" ", "_") for cell in cells]
    if any(name in _COLUMNS or _OTHER_COLUMN.fullmatch(name) for name in names):
        return True
    return all(name in _OTHER_COLUMNS or difflib.get_close_matches(name, _COLUMNS, cutoff=0.8) for name in names)


def _columns(heading: CsvRow) -> list[str]:
    """Return the fields of a concept that the columns of a heading hold."""
    for cell in heading.cells:
        if normalized(cell) not in _COLUMNS:
            raise InputError(
                f"{heading.where}: {unknown_name('column', cell, _COLUMNS)} Rename or delete it; if the line is no"
                " heading, write the line 'concept,anchor,preserve' above it."
            )
    columns = [_COLUMNS[normalized(cell)] for cell in heading.cells]
    check_columns(CsvRow(where=heading.where, cells=tuple(columns)), ["target"])
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"{heading.where}: expected each column once, got {column!r} twice. Delete one.")
    return columns


def _concept_of_row(row: CsvRow, columns: Sequence[str], *, exact: bool) -> dict[str, Any]:
    """Return the request of a row; under a heading a row has a cell for every column."""
    if len(row.cells) > len(columns) or (exact and len(row.cells) < len(columns)):
        raise InputError(
            f"{row.where}: expected {'' if exact else 'at most '}{len(columns)} columns, got {len(row.cells)}."
            " Write the comma of an empty cell; quote a cell that holds a comma."
        )
    concept: dict[str, Any] = {}
    for column, cell in zip(columns, row.cells, strict=False):
        is_list = column in ("preserve", "aliases")
        check_delimiter(row, cell, ";" if is_list else "")
        if is_list and cell:
            concept[column] = [part.strip() for part in cell.split(";") if part.strip()]
        elif cell or column == "target":
            concept[column] = cell
    if not concept.get("target"):
        raise InputError(f"{row.where}: expected a concept, got {','.join(row.cells)!r}. Name the concept to erase.")
    try:
        Concept.from_json(concept)
    except ErasureError as error:
        raise InputError(f"{row.where}: {error}") from None
    return concept
