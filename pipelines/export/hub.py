"""Pipelines for the Hugging Face Hub: one self-contained file a pipeline class, written from our source.

    python -m erasure.pipelines.export.hub --out community

diffusers loads such a file where this package is not installed, by `DiffusionPipeline.from_pretrained(model,
custom_pipeline=file)`, and accepts one pipeline class a file. The mathematics stays where it is: what a class needs is
followed through our modules and copied, definition by definition, without the shapes in its annotations.
"""

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

from erasure import __version__
from erasure.errors import ErasureError, InputError
from erasure.io.files import write_whole

from .. import a_star, guided

_PACKAGE = ErasureError.__module__.partition(".")[0]
# Modules that a self-contained file must not need, or that need such: their parts that it uses. Of the checks of
# settings by pydantic it has those of ranges.
_STAND_INS = {
    f"{_PACKAGE}.arguments": """
from typing import TypeVar

Item = TypeVar("Item")


def checks_arguments(item: Item) -> Item:
    \"\"\"Return a function or class as it is; the package checks its arguments, a file for the Hub does not.\"\"\"
    return item
""",
    "annotated_types": """
from dataclasses import dataclass
from operator import ge, gt, le, lt


@dataclass(frozen=True, kw_only=True)
class Interval:
    \"\"\"Range of a number.\"\"\"

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __str__(self) -> str:
        bounds = {">": self.gt, ">=": self.ge, "<": self.lt, "<=": self.le}
        return "a number " + " and ".join(f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None)

    def __contains__(self, value: float) -> bool:
        limits = ((gt, self.gt), (ge, self.ge), (lt, self.lt), (le, self.le))
        return all(bound is None or holds(value, bound) for holds, bound in limits)


def Ge(ge: float) -> Interval:
    \"\"\"Return the numbers from a bound upwards.\"\"\"
    return Interval(ge=ge)


def Gt(gt: float) -> Interval:
    \"\"\"Return the numbers above a bound.\"\"\"
    return Interval(gt=gt)


def Lt(lt: float) -> Interval:
    \"\"\"Return the numbers below a bound.\"\"\"
    return Interval(lt=lt)
""",
    f"{_PACKAGE}.registry": f"""
from abc import ABC
from collections.abc import Mapping
from inspect import get_annotations
from typing import Any, ClassVar, Literal

from annotated_types import Interval
from {_PACKAGE}.errors import InputError

Exactness = Literal["published", "reconstructed", "ours"]


class Plugin(ABC):
    \"\"\"Base of all guidances.\"\"\"

    name: ClassVar[str]
    source: ClassVar[str]
    exactness: ClassVar[Exactness]
    quick: ClassVar[Mapping[str, Any]] = {{}}

    def __post_init__(self) -> None:
        for setting, hint in [item for kind in type(self).__mro__ for item in get_annotations(kind).items()]:
            for limit in getattr(hint, "__metadata__", ()):
                if isinstance(limit, Interval) and (value := getattr(self, setting)) not in limit:
                    raise InputError(f"{{self.name}}.{{setting}}: expected {{limit}}, got {{value!r}}. Change it.")
""",
}
_SHAPED = {"Bool", "Float", "Int", "UInt8"}

PIPELINES: tuple[type, ...] = (
    a_star.StableDiffusionAStarPipeline,
    a_star.StableDiffusionXLAStarPipeline,
    a_star.StableDiffusionAStarImg2ImgPipeline,
    a_star.StableDiffusionXLAStarImg2ImgPipeline,
    a_star.StableDiffusionAStarInpaintPipeline,
    a_star.StableDiffusionXLAStarInpaintPipeline,
    guided.StableDiffusionLocalisedPipeline,
    guided.StableDiffusionXLLocalisedPipeline,
    guided.StableDiffusionAttendExcitePipeline,
    guided.StableDiffusionXLAttendExcitePipeline,
    guided.StableDiffusionAdavdPipeline,
    guided.StableDiffusionXLAdavdPipeline,
    guided.StableDiffusionCapsulePipeline,
    guided.StableDiffusionXLCapsulePipeline,
    guided.StableDiffusionCasteerPipeline,
    guided.StableDiffusionXLCasteerPipeline,
    guided.StableDiffusionNegativePromptPipeline,
    guided.StableDiffusionXLNegativePromptPipeline,
    guided.StableDiffusionSafreePipeline,
    guided.StableDiffusionXLSafreePipeline,
    guided.StableDiffusionSemanticSurgeryPipeline,
    guided.StableDiffusionXLSemanticSurgeryPipeline,
    guided.StableDiffusionSldPipeline,
    guided.StableDiffusionXLSldPipeline,
    guided.StableDiffusionSpmPipeline,
    guided.StableDiffusionXLSpmPipeline,
)
"""Pipeline classes that `python -m erasure.pipelines.export.hub` writes."""


@dataclass(eq=False)
class _Module:
    """A module of ours as source: what it defines, and where the names that it imports come from."""

    name: str
    text: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, module: ModuleType) -> "_Module":
        """Read a module."""
        text = _STAND_INS.get(module.__name__) or inspect.getsource(module)
        read = cls(name=module.__name__, text=text)
        for node in ast.parse(read.text).body:
            read._note(node, module)
        return read

    def _note(self, node: ast.stmt, module: ModuleType) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.foreign[name] = f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else "")
            case ast.ImportFrom():
                source = _absolute(node, module)
                for alias in node.names:
                    name = alias.asname or alias.name
                    if source.partition(".")[0] == _PACKAGE or source in _STAND_INS:
                        self.ours[name] = (source, alias.name)
                    else:
                        self.foreign[name] = f"from {source} import {alias.name}" + (
                            f" as {alias.asname}" if alias.asname else ""
                        )
            case ast.FunctionDef() | ast.ClassDef():
                self.definitions[node.name] = [node]
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (
                    inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)
                ):
                    self.definitions[name] = [node]
            case _:
                pass  # docstrings


def self_contained(pipeline: type) -> str:
    """Return the source of one file that defines a pipeline class of ours and needs none of our modules.

    Raises:
        InputError: It is not a class of this package, or two of the things that it needs have one name.
    """
    if pipeline.__module__.partition(".")[0] != _PACKAGE:
        raise InputError(
            f"hub: expected a pipeline class of {_PACKAGE}, got {pipeline.__qualname__}. Publish its file."
        )
    modules: dict[str, _Module] = {}
    needed = list(_followed(pipeline.__module__, pipeline.__name__, modules))
    owner: dict[str, str] = {}
    imports: set[str] = set()
    for module, name in needed:
        if owner.setdefault(name, module) != module:
            raise InputError(f"hub: expected distinct names, got {name!r} in {owner[name]} and {module}. Rename one.")
        imports |= set(_foreign_of(modules[module], name))
    parts = [_header(pipeline), "\n".join(sorted(imports, key=_import_order))]
    for module in _in_order(modules):
        chosen = {name for where, name in needed if where == module.name}
        nodes = {id(node): node for name in chosen for node in module.definitions[name]}
        parts += [_source(module, node) for node in sorted(nodes.values(), key=lambda node: node.lineno)]
    return "\n\n\n".join(parts) + "\n"


def _followed(module: str, name: str, modules: dict[str, _Module]) -> Iterator[tuple[str, str]]:
    """Give each definition of ours that a name needs, itself included, once."""
    seen: set[tuple[str, str]] = set()
    waiting = [(module, name)]
    while waiting:
        where, what = waiting.pop()
        if (where, what) in seen:
            continue
        seen.add((where, what))
        if where not in modules:
            modules[where] = _Module.of(import_module(where))
        source = modules[where]
        if what in source.ours:
            waiting.append(source.ours[what])
            continue
        if what not in source.definitions:
            raise InputError(f"hub: expected {where} to define {what!r} at its top level. Define it there.")
        yield where, what
        used = {used for node in source.definitions[what] for used in _names(node)}
        waiting += [(where, other) for other in sorted(used) if other in source.definitions]
        waiting += [source.ours[other] for other in sorted(used) if other in source.ours]


def _names(node: ast.AST) -> Iterator[str]:
    """Give the names that a definition uses, those in annotations that are written as text included."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.isidentifier():
            yield inner.value


def _foreign_of(module: _Module, name: str) -> Iterator[str]:
    for node in module.definitions[name]:
        for used in _names(node):
            if used in module.foreign and "jaxtyping" not in module.foreign[used]:
                yield module.foreign[used]


def _in_order(modules: dict[str, _Module]) -> list[_Module]:
    """Return modules so that each stands after those that it imports from."""
    order: list[_Module] = []

    def visit(name: str) -> None:
        module = modules[name]
        for source, _ in module.ours.values():
            if source in modules and modules[source] not in order and source != name:
                visit(source)
        if module not in order:
            order.append(module)

    for name in modules:
        visit(name)
    return order


def _source(module: _Module, node: ast.stmt) -> str:
    """Return a definition as it stands in its module, shaped annotations made plain."""
    lines = module.text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = module.text.encode()

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    first = min((decorator.lineno for decorator in decorators), default=node.lineno)
    begin, end = place(first, 0), place(node.end_lineno or node.lineno, node.end_col_offset or 0)
    changes = [
        (
            place(inner.lineno, inner.col_offset),
            place(inner.end_lineno or 0, inner.end_col_offset or 0),
            inner.slice.elts[0],
        )
        for inner in ast.walk(node)
        if isinstance(inner, ast.Subscript)
        and isinstance(inner.value, ast.Name)
        and inner.value.id in _SHAPED
        and isinstance(inner.slice, ast.Tuple)
    ]
    pieces, done = [], begin
    for left, right, plain in sorted(changes, key=lambda change: change[0]):
        pieces += [raw[done:left], ast.unparse(plain).encode()]
        done = right
    return b"".join([*pieces, raw[done:end]]).decode()


def _absolute(node: ast.ImportFrom, module: ModuleType) -> str:
    """Return the full name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    is_package = hasattr(module, "__path__")
    base = module.__name__.split(".")
    base = base[: len(base) - node.level + (1 if is_package else 0)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _import_order(line: str) -> tuple[int, str]:
    name = line.split()[1].partition(".")[0]
    return (0 if name in sys.stdlib_module_names else 1, line.split()[1])


def _header(pipeline: type) -> str:
    summary = (inspect.getdoc(pipeline) or pipeline.__name__).splitlines()[0]
    origin = f"Written by {_PACKAGE} {__version__} (Apache-2.0) from {pipeline.__module__} and what it needs."
    return f'"""{summary}\n\n{origin}\nNeeds diffusers with its requirements, transformers and torch.\n"""'


def main() -> None:
    """Write a file for each pipeline class."""
    parser = argparse.ArgumentParser(description="Write one self-contained file for each pipeline class.")
    parser.add_argument("--out", type=Path, required=True, help="folder; one file a pipeline class")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for pipeline in PIPELINES:
            path = options.out / f"{file_name(pipeline)}.py"
            write_whole(path, self_contained(pipeline).encode())
            sys.stdout.write(f"{path}\n")
    except (ErasureError, OSError) as error:
        parser.exit(1, f"{error}\n")


def file_name(pipeline: type) -> str:
    """Return the name of a class as diffusers names files: "pipeline_stable_diffusion_a_star"."""
    words = re.findall(r"XL|Img2Img|[A-Z][a-z]*", pipeline.__name__.removesuffix("Pipeline"))
    return "_".join(["pipeline", *(word.lower() for word in words)])


if __name__ == "__main__":
    main()
