"""Tables of the pieces that the library has, built from their classes."""

from inspect import getdoc
from pathlib import Path

from .layout import ROOT, table


def methods(source: str, results: Path) -> str:
    """Return one row an eraser: its description, its source and the page about it."""
    from erasure.erasers import eraser_class, eraser_names

    rows = []
    for name in eraser_names():
        kind = eraser_class(name)
        summary = (getdoc(kind) or "").partition("\n")[0].rstrip(".")
        exactness = "" if kind.source.startswith(kind.exactness) else f" ({kind.exactness})"
        page = page_of(name)
        rows.append((f"`{name}`", summary, f"{kind.source}{exactness}", f"[{page}]({page})" if page else "–"))
    return table(("name", "what it does", "source", "page"), rows, ())


def models(source: str, results: Path) -> str:
    """Return one row a model family: what works on it."""
    from erasure.loading.families import HEADINGS, NOT_RELEASED, family_support

    def row(cells: tuple[str, ...]) -> tuple[str, ...]:
        streams, erasers = (", ".join(f"`{name}`" for name in names.split(", ")) for names in cells[2:4])
        return (*cells[:2], streams, erasers, *cells[4:])

    rows = [row(support.cells()) for support in family_support()]
    return f"{table(HEADINGS, rows, ())}\n{NOT_RELEASED}\n"


def page_of(name: str) -> str:
    """Return the page about an eraser, from the root of the project; "" without one."""
    places = (f"docs/erasers/{name}.md", f"docs/{name}.md")
    return next((place for place in places if (ROOT / place).is_file()), "")
