"""Build the tables of the README and of docs/ from results/ and from the code, so that no number is typed by hand.

A page says where a table goes and what it is made of:

    <!-- table removal: removal/*/run.json -->
    ...whatever is between is replaced...
    <!-- end table -->

`python -m docs.build_tables` rewrites the pages, `--check` only says which would change.
"""

import argparse
import re
import sys
from pathlib import Path

from .tables import TABLES
from .tables.layout import ROOT
from .tables.methods import measured

MEASURED = ROOT / "configs" / "measured.csv"
MARKED = re.compile(r"(<!-- table ([\w-]+): (.+?) -->\n).*?(<!-- end table -->)", re.DOTALL)


def main() -> None:
    """Rewrite the pages, or with --check fail where one is not as it would be written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page would change")
    check = parser.parse_args().check
    if (text := measured(ROOT / "results")) != MEASURED.read_text(encoding="utf-8"):
        print(f"{MEASURED.relative_to(ROOT)}: {'expected what results/ gives' if check else 'written'}")
        if check:
            sys.exit(1)
        MEASURED.write_text(text, encoding="utf-8")
    stale = [page for page in pages() if (text := page.read_text(encoding="utf-8")) != with_tables(text)]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'expected the tables that results/ gives' if check else 'written'}")
        if not check:
            page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(1 if check and stale else 0)


def pages() -> list[Path]:
    """Return every page that may hold tables."""
    sheets = [ROOT / "erasure" / "tinyworld" / model / "README.md" for model in ("model", "flux")]
    return [ROOT / "README.md", *sheets, *sorted((ROOT / "docs").rglob("*.md"))]


def with_tables(page: str, results: Path = ROOT / "results") -> str:
    """Return the page with each of its tables built anew.

    Raises:
        KeyError: There is no table of that name.
    """

    def table(marked: re.Match[str]) -> str:
        opening, name, source, closing = marked.groups()
        return f"{opening}{TABLES[name](source, results)}{closing}"

    return MARKED.sub(table, page)


if __name__ == "__main__":
    main()
