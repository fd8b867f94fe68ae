"""Imports point one way, and importing the library costs next to nothing."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A layer may import those before it and itself; the two front doors come last.
LAYERS = ("erasure", "erasure.pipelines", "erasure.eval", "erasure.demo", "front door")
FOLDERS = {layer: ROOT / layer.rpartition(".")[2] for layer in LAYERS[:-1]}
CLI = ROOT / "erasure" / "cli"
FRONT_DOORS = (*sorted(CLI.rglob("*.py")), ROOT / "app.py", ROOT / "erasure" / "__main__.py")


def modules() -> Iterator[tuple[str, Path, str]]:
    """Give every module of the library as its layer, its file and its dotted name."""
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))
            yield "front door" if file in FRONT_DOORS else package, file, name
    yield "front door", ROOT / "app.py", "app"


def imported(file: Path, name: str) -> Iterator[tuple[int, str]]:
    """Give line and absolute name of everything that a file imports, wherever in it."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def layer_of(name: str) -> str | None:
    """Return the layer that an imported name belongs to; None for another library's."""
    if name == "app" or name.startswith("erasure.cli"):
        return "front door"
    inside = [layer for layer in LAYERS if name == layer or name.startswith(f"{layer}.")]
    return max(inside, key=len, default=None)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {target}"
        for layer, file, name in modules()
        for line, target in imported(file, name)
        if (of := layer_of(target)) and LAYERS.index(of) > LAYERS.index(layer)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_folder_imports_itself_or_a_later_one_by_its_name() -> None:
    # The dotted names of the top folders hold in an installed copy only, so editors cannot follow them.
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno} imports {node.module}"
        for layer, file, _ in modules()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if layer != "front door" and isinstance(node, ast.ImportFrom) and not node.level
        if (of := layer_of(node.module or "")) and (layer == "erasure" or of != "erasure")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_is_seen() -> None:
    names = {name for _, _, name in modules()}
    assert {"erasure", "erasure.eval", "erasure.pipelines", "erasure.errors", "erasure.erasers.base"} <= names


def test_no_file_postpones_its_annotations() -> None:
    # Shapes are checked at run time, which needs the annotations as they are.
    files = [file for folder in FOLDERS.values() for file in folder.rglob("*.py")]
    wrong = [str(file.relative_to(ROOT)) for file in files if "from __future__" in file.read_text(encoding="utf-8")]
    assert not wrong


@pytest.mark.parametrize("heavy", ["torch", "diffusers", "transformers", "matplotlib", "numpy", "pydantic", "typer"])
def test_importing_the_library_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys, erasure; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_import_costs_less_than_three_tenths_of_a_second() -> None:
    empty = min(cpu_seconds(sys.executable, "-c", "pass") for _ in range(3))
    full = min(cpu_seconds(sys.executable, "-c", "import erasure") for _ in range(3))
    assert full - empty < 0.3


def test_help_is_quick() -> None:
    # benchmarks/startup.py measures it; this catches the import of a large library.
    assert min(cpu_seconds(*COMMAND, "--help") for _ in range(3)) < 1.5


def test_help_imports_no_torch() -> None:
    code = """
import sys
from erasure.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


COMMAND = (sys.executable, "-c", "from erasure.cli.main import main; main()")


def cpu_seconds(*command: str) -> float:
    """Return the processor time of a command, which a busy machine hardly changes, and check that it succeeds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
