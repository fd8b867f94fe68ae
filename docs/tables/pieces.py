"""Tables of the pieces of trained erasers and of the papers that they carry over."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import getdoc
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from .layout import ROOT, table

PAPERS = ROOT / "docs" / "papers.yaml"
LOOP = ("reset", "flat", "schedule", "unforgotten", "every")
"""Settings of `Shape` that are pieces of the loop rather than of an extension point."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A row of docs/papers.yaml.

    Attributes:
        row: Number of the row, from 1.
        id: Number of the paper on arXiv.
        name: Short name.
        mechanism: Idea that is carried over, or is not.
        pieces: Places of the code that have it, each "SEAM NAME": an extension point and a piece of it, or "loop" and
            a setting.
        reason: Reason for the absence of a piece, or of a part of the idea.
    """

    row: int
    id: str
    name: str
    mechanism: str
    pieces: tuple[str, ...] = ()
    reason: str = ""


def read_papers(path: Path = PAPERS) -> list[Paper]:
    """Return the papers of a file."""
    rows: Sequence[Mapping[str, Any]] = YAML(typ="safe").load(io.StringIO(path.read_text(encoding="utf-8")))
    return [Paper(**{**row, "pieces": tuple(row.get("pieces", ()))}) for row in rows]


def problems_of(paper: Paper) -> Iterator[str]:
    """Yield the faults of a row: neither piece nor reason, or a piece that is not there."""
    if not paper.pieces and not paper.reason:
        yield f"row {paper.row}: expected a piece or a reason, got neither"
    for place in paper.pieces:
        seam, _, name = place.partition(" ")
        if name not in _names_of(seam):
            yield f"row {paper.row}: expected a piece of an extension point, got {place!r}"


def _names_of(seam: str) -> Sequence[str]:
    from erasure.cli.setup import extension_points
    from erasure.training.shape import Shape

    if seam == "loop":
        return [field.name for field in fields(Shape) if field.name in LOOP]
    points = extension_points()
    return points[seam].names() if seam in points else ()


def papers(source: str, results: Path) -> str:
    """Return one row a paper, with the places of the code that carry it over."""
    rows = []
    for paper in read_papers():
        link = f"[{paper.id}](https://arxiv.org/abs/{paper.id})"
        places = ", ".join(f"{seam} `{name}`" for seam, _, name in (place.partition(" ") for place in paper.pieces))
        reason = paper.reason[:1].upper() + paper.reason[1:]
        rows.append((str(paper.row), f"{paper.name} ({link})", paper.mechanism, places or "–", reason or "–"))
    return table(("row", "paper", "mechanism", "pieces", "left out, and why"), rows, ())


def pieces(source: str, results: Path) -> str:
    """Return one row a piece of a trained eraser: seam, name, purpose, source, verdict."""
    from erasure.cli.setup import extension_points
    from erasure.registry import described
    from erasure.runs.verdicts import SEAMS, verdict
    from erasure.training.shape import Shape

    rows = []
    points = extension_points()
    for seam in SEAMS[:-1]:
        for name, kind in points[seam].classes().items():
            summary = (getdoc(kind) or "").partition("\n")[0].rstrip(".")
            origin = kind.source if kind.source == kind.exactness else f"{kind.source} ({kind.exactness})"
            rows.append((seam, f"`{name}`", summary, origin, verdict(seam, name)))
    for name in LOOP:
        text = described(Shape)[name]
        sources = re.findall(r"arXiv:\d{4}\.\d{5}", f"{text} {_docstring_of(Shape, name)}") or ["ours"]
        rows.append(
            (
                "loop",
                f"`{name}`",
                text.partition(":")[0].partition(";")[0].rstrip("."),
                sources[0],
                verdict("loop", name),
            )
        )
    return table(("seam", "name", "description", "source", "verdict"), rows, ())


def _docstring_of(kind: type, field: str) -> str:
    """Return the docstring of the settings that a field takes; "" for a plain value."""
    hint = next(item.type for item in fields(kind) if item.name == field)
    nested = [part for part in getattr(hint, "__args__", ()) if hasattr(part, "__dataclass_fields__")]
    return " ".join(getdoc(part) or "" for part in nested)
