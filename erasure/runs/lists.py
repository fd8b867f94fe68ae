"""Lists of removal requests: CSV files, and the families that come with the library."""

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbones import backbone_of
from ..backbones.conditioning import tokenized
from ..backbones.sd import textual_inversion_applied
from ..concept import Concept, normalized
from ..errors import ErasureError, InputError, unknown_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def read_concepts(path: Path) -> list[dict[str, Any]]:
    """Read a CSV list of removal requests: the concept, and optionally its anchor and preserved concepts (`;` between).

    A first line that starts with "concept" or "target" names the columns; else they are concept, anchor, preserve.

    Raises:
        InputError: The file cannot be read, holds no concept, or has an unknown column, an empty line between others,
            or a line without a concept or with a concept as its own anchor.
    """
    return [concept for _, concept in _numbered_concepts(path)]


def check_phrases(path: Path, pipe: "DiffusionPipeline") -> None:
    """Refuse a list with a phrase that is longer than the input of the text encoder.

    Raises:
        InputError: A phrase is too long; the error names the line.
    """
    tokenizer = next(iter(backbone_of(pipe).tokenizers().values()))
    for number, concept in _numbered_concepts(path):
        names = [
            concept["target"],
            concept.get("anchor", ""),
            *concept.get("aliases", ()),
            *concept.get("preserve", ()),
        ]
        phrases = [textual_inversion_applied(pipe, name, tokenizer) for name in names if name]
        ids, spans = tokenized(tokenizer, phrases)
        for phrase, offsets in zip(phrases, spans, strict=True):
            if max(end for _, end in offsets) < len(phrase):
                raise InputError(
                    f"--from {str(path)!r} line {number}: expected phrases of at most {ids.shape[1] - 2} tokens,"
                    f" got {phrase!r}. Shorten it."
                )


def list_path(name: str) -> Path:
    """Return the file of a list of removal requests, given by the name of a shipped list or by its path.

    Raises:
        InputError: It is neither.
    """
    known = _lists()
    path = known.get(normalized(name), Path(name))
    if not path.is_file():
        raise InputError(f"concepts: expected a list's name or file, got {name!r}. Known: {', '.join(sorted(known))}.")
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


def _numbered_concepts(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the requests of a list, each with the number of its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"--from: expected a file to read, got {str(path)!r} ({error.strerror}).") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"--from {str(path)!r}: expected text in UTF-8 and CSV, got {str(error)!r}.") from None
    while rows and not any(map(str.strip, rows[-1][1])):
        rows.pop()  # blank lines at the end say nothing
    for number, row in rows:
        if not any(map(str.strip, row)):
            raise InputError(f"--from {str(path)!r} line {number}: expected a concept, got an empty line. Delete it.")
    columns = ["target", "anchor", "preserve"]
    known = ["target", "anchor", "preserve", "kind", "aliases"]
    if rows and rows[0][1][0].strip().lower() in ("concept", "target"):
        columns = ["target" if name.strip().lower() == "concept" else name.strip().lower() for name in rows.pop(0)[1]]
        for name in columns:
            if name not in known:
                raise unknown_name(f"column of {str(path)!r}", name, known)
    concepts = [(number, _concept_of_row(path, number, columns, row)) for number, row in rows]
    if not concepts:
        raise InputError(f"--from {str(path)!r}: expected a concept a line, got none.")
    return concepts


def _concept_of_row(path: Path, number: int, columns: Sequence[str], row: Sequence[str]) -> dict[str, Any]:
    cells = [cell.strip() for cell in row]
    if len(cells) > len(columns):
        raise InputError(
            f"--from {str(path)!r} line {number}: expected at most {len(columns)} columns, got {len(cells)}."
        )
    concept: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=False):
        if column in ("preserve", "aliases"):
            if cell:
                concept[column] = [part.strip() for part in cell.split(";") if part.strip()]
        elif cell or column == "target":
            concept[column] = cell
    if not concept.get("target"):
        raise InputError(f"--from {str(path)!r} line {number}: expected a concept, got {','.join(row)!r}.")
    try:
        Concept.from_json(concept)
    except ErasureError as error:
        raise InputError(f"--from {str(path)!r} line {number}: {error}") from None
    return concept
