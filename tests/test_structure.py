"""The tree keeps its shape: import order, no circle, sizes, unique class names, few `Any`.

`python tests/test_structure.py [FOLDER ...]` prints the violations by folder.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.source_tree import Source, Violation, functions, main, package_sources, script_sources  # noqa: E402

# Each room may import those before it and itself.
ROOMS = (
    *("errors", "io", "arguments", "progress", "provenance", "registry", "typed_torch", "judge", "profile", "concept"),
    *("prompts", "graph", "losses", "backbones", "closed_form", "sampling", "guidance", "edits", "training", "erasers"),
    *("personalize", "ledger", "tinyworld", "loading", "api", "suggestions", "runs", "cli"),
)
EVAL_ROOMS = (
    *("stats", "images", "judges", "features", "metrics", "attacks", "probes", "benchmarks", "protocols", "reports"),
)
PLUGIN_FOLDERS = {
    *("erasure/erasers", "erasure/guidance", "erasure/backbones", "erasure/training/objectives"),
    *("erasure/training/terms", "erasure/training/transforms", "erasure/training/selectors", "erasure/edits/finish"),
    *("eval/attacks", "eval/probes", "eval/metrics", "eval/benchmarks"),
}
FILE_LINES, ERASER_LINES, CLASS_LINES, FUNCTION_LINES, FOLDER_MODULES = 400, 250, 250, 60, 14
EXCEPTIONS = 8
ANY_SHARE = 0.01


def imports(source: Source, modules: dict[str, Source]) -> Iterator[tuple[int, str]]:
    """Yield line and module of everything of the package that a file imports, deferred and typing imports too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = source.package.split(".") if node.level else []
            above = parts[: len(parts) - node.level + 1]
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # The version is a constant above every import of the package.
            names = [
                name if (name := f"{origin}.{alias.name}") in modules else origin
                for alias in node.names
                if alias.name != "__version__"
            ]
        else:
            continue
        packages = [package for name in names for package in _packages_on_the_way(name, source.name)]
        yield from ((node.lineno, name) for name in dict.fromkeys([*names, *packages]) if name in modules)


def _packages_on_the_way(name: str, importer: str) -> list[str]:
    """Return the packages that an import of `name` runs first, those around the importer apart."""
    parts = name.split(".")
    above = [".".join(parts[:i]) for i in range(1, len(parts))]
    return [package for package in above if not importer.startswith(f"{package}.") and importer != package]


def import_circles() -> list[Violation]:
    """Return one violation for each import inside a strongly connected set of modules."""
    modules = {source.name: source for source in package_sources()}
    edges = {name: dict((m, line) for line, m in imports(source, modules)) for name, source in modules.items()}
    reach = {name: _reachable(name, edges) for name in modules}
    violations = []
    for name, source in modules.items():
        for target, line in edges[name].items():
            if target != name and name in reach[target]:
                violations.append(Violation(source.path, line, f"imports {target}, which imports it back"))
    return violations


def _reachable(start: str, edges: dict[str, dict[str, int]]) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        for target in edges[waiting.pop()]:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def _place(name: str) -> tuple[str, int] | None:
    """Return the ordered list that a module belongs to, and its place in it; None for a module outside both."""
    for prefix, rooms in (("erasure.eval.", EVAL_ROOMS), ("erasure.", ROOMS)):
        if name.startswith(prefix):
            room = name.removeprefix(prefix).split(".")[0]
            return (prefix, rooms.index(room)) if room in rooms else None
    return None


def import_order() -> list[Violation]:
    """Return imports of a later room."""
    modules = {source.name: source for source in package_sources()}
    violations = []
    for name, source in modules.items():
        place = _place(name)
        for line, target in imports(source, modules):
            other = _place(target)
            if place and target == "erasure":
                violations.append(Violation(source.path, line, "imports erasure itself, the last of all"))
            if place and other and place[0] == other[0] and other[1] > place[1]:
                violations.append(Violation(source.path, line, f"imports {target}, a later room"))
    return violations


def unknown_rooms() -> list[Violation]:
    """Return modules in a folder or file that the layout does not name."""
    known = ("erasure", "erasure.__main__", "erasure.eval", "erasure.demo", "erasure.pipelines")
    other = ("erasure.demo.", "erasure.pipelines.")
    return [
        Violation(source.path, 1, "is in no room of docs/architecture.md")
        for source in package_sources()
        if source.name not in known and not source.name.startswith(other) and _place(source.name) is None
    ]


def too_long() -> list[Violation]:
    """Return files, classes and functions over the limits, exceptions apart."""
    violations = []
    for source in (*package_sources(), *script_sources()):
        if source.reason:
            continue
        lines = source.text.count("\n")
        most = ERASER_LINES if source.name.startswith("erasure.erasers.") else FILE_LINES
        if lines > most:
            violations.append(Violation(source.path, 1, f"has {lines} lines, at most {most}"))
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef) and (n := _length(node)) > CLASS_LINES:
                violations.append(Violation(source.path, node.lineno, f"class {node.name} has {n} lines"))
        for node in functions(source.tree):
            if (n := _function_length(node)) > FUNCTION_LINES:
                violations.append(Violation(source.path, node.lineno, f"function {node.name} has {n} lines"))
    return violations


def _length(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _function_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's lines; of a command, those after its declaration and docstring."""
    if not any(".command(" in ast.unparse(d) or ".callback(" in ast.unparse(d) for d in node.decorator_list):
        return _length(node)
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def exceptions_to_size() -> list[Violation]:
    """Return the files that name a reason to be long, once they are too many."""
    named = [source for source in (*package_sources(), *script_sources()) if source.reason]
    return [Violation(s.path, 1, f"is an exception: {s.reason}") for s in named] if len(named) > EXCEPTIONS else []


def crowded_folders() -> list[Violation]:
    """Return folders of the package with too many modules, plugin folders apart, and files beside eval's rooms."""
    folders: dict[Path, int] = {}
    for source in package_sources():
        if source.path.name != "__init__.py":
            folders[source.path.parent] = folders.get(source.path.parent, 0) + 1
    crowded = [
        Violation(folder / "__init__.py", 1, f"folder has {count} modules, at most {FOLDER_MODULES}")
        for folder, count in folders.items()
        if count > FOLDER_MODULES and folder.as_posix() not in PLUGIN_FOLDERS
    ]
    beside = [file.relative_to(ROOT) for file in (ROOT / "eval").glob("*.py") if file.name != "__init__.py"]
    return [*crowded, *(Violation(file, 1, "is beside the rooms of eval/") for file in beside)]


def repeated_class_names() -> list[Violation]:
    """Return every definition of a class whose name is defined twice in the package."""
    places: dict[str, list[tuple[Path, int]]] = {}
    for source in package_sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append((source.path, node.lineno))
    return [
        Violation(path, line, f"class {name} is also defined in {', '.join(str(p) for p, _ in where if p != path)}")
        for name, where in sorted(places.items())
        if len(where) > 1
        for path, line in where
    ]


def annotations(source: Source) -> Iterator[ast.expr]:
    """Yield the annotations of parameters, returns, fields and variables."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            yield node.returns


def _is_any(annotation: ast.expr) -> bool:
    return ast.unparse(annotation) in ("Any", "Any | None", "None | Any")


def bare_any() -> list[Violation]:
    """Return the annotations that are a bare `Any`, once they are more than the share allowed."""
    sources = package_sources()
    every = [(source, annotation) for source in sources for annotation in annotations(source)]
    bare = [(source, annotation) for source, annotation in every if _is_any(annotation)]
    if len(bare) <= ANY_SHARE * len(every):
        return []
    share = f"bare Any ({len(bare)} of {len(every)}, {len(bare) / len(every):.1%}, at most {ANY_SHARE:.0%})"
    return [Violation(source.path, annotation.lineno, share) for source, annotation in bare]


def untyped_pipelines() -> list[Violation]:
    """Return parameters and fields for a pipeline whose type is `Any`: it is a `DiffusionPipeline`."""
    return [
        Violation(source.path, node.lineno, f"{name}: Any")
        for source in (*package_sources(), *script_sources())
        for node in ast.walk(source.tree)
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation and _is_any(node.annotation)
        if (name := node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)) in ("pipe", "pipeline")
    ]


CHECKS = (
    *(import_circles, import_order, unknown_rooms, crowded_folders, too_long, exceptions_to_size),
    *(repeated_class_names, bare_any, untyped_pipelines),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_structure(check) -> None:
    violations = check()
    assert not violations, "\n".join(map(str, violations))


if __name__ == "__main__":
    sys.exit(main(CHECKS, sys.argv[1:]) > 0)
