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


def page_of(name: str) -> str:
    """Return the page about an eraser, from the root of the project; "" without one."""
    places = (f"docs/erasers/{name}.md", f"docs/{name}.md")
    return next((place for place in places if (ROOT / place).is_file()), "")
