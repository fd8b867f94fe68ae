"""Source files of the project for the tests that read them: areas, dotted names, syntax trees."""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"erasure": "erasure", "pipelines": "erasure.pipelines", "eval": "erasure.eval", "demo": "erasure.demo"}
SCRIPTS = ("experiments", "benchmarks", "docs")
"""Folders that are checked for size and words, but are no part of the package."""


@dataclass(frozen=True)
class Source:
    """One Python file.

    Attributes:
        path: Path below the project's root.
        name: Dotted name of the module; empty for a script outside the package.
    """

    path: Path
    name: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def reason(self) -> str:
        """Reason for an exception to the limits of size: the comment `# Long: ...` in the first line."""
        first = self.text.partition("\n")[0]
        return first.removeprefix("# Long: ") if first.startswith("# Long: ") else ""


@dataclass(frozen=True)
class Violation:
    """One line of a file that breaks a rule."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.text}"


@cache
def package_sources() -> list[Source]:
    """Return the modules of the package, the folders of the tree's top under their installed names."""
    return [source for folder, package in PACKAGES.items() for source in _sources(folder, package)]


@cache
def script_sources() -> list[Source]:
    """Return the Python files outside the package."""
    return [Source(file.relative_to(ROOT), "") for folder in SCRIPTS for file in sorted((ROOT / folder).rglob("*.py"))]


def _sources(folder: str, package: str) -> Iterator[Source]:
    for file in sorted((ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT)
        if folder == "erasure" and path.parts[1] in (*PACKAGES, "configs"):
            continue  # links of a developer's checkout
        parts = path.with_suffix("").parts[1:]
        yield Source(path, ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts))))


def pages() -> list[Path]:
    """Return the Markdown pages below the project's root."""
    below = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "erasure" / "tinyworld").rglob("*.md")]
    return sorted(page.relative_to(ROOT) for page in below)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def area(path: Path) -> str:
    """Return the folder that a file is reported under, at most two levels deep."""
    return "/".join(path.parent.parts[:2]) or "."


def main(checks: Sequence[Callable[[], Iterable[Violation]]], folders: Sequence[str]) -> int:
    """Print the violations of the checks in files below `folders` (default: all), by area; return their number."""
    prefixes = tuple(folder.rstrip("/") for folder in folders)
    count = 0
    for check in checks:
        chosen = [v for v in check() if not prefixes or re.match("|".join(map(re.escape, prefixes)), str(v.path))]
        count += len(chosen)
        sys.stdout.write(f"\n== {check.__name__}: {len(chosen)}\n")
        for name in sorted({area(v.path) for v in chosen}):
            here = [v for v in chosen if area(v.path) == name]
            sys.stdout.write(f"-- {name}: {len(here)}\n" + "".join(f"   {v}\n" for v in here))
    sys.stdout.write(f"\n{count} violations\n")
    return count
