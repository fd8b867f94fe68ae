"""Command `pieces`: every piece of every extension point, by the registry."""

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from inspect import getdoc
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from .console import out

if TYPE_CHECKING:
    from ..registry import Registry


def pieces(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Extension point or piece; default: all.")] = None,
) -> None:
    """List the pieces of every extension point, with their settings and sources."""
    from ..errors import unknown_name
    from ..registry import described

    points = extension_points()
    known = {*points, *(piece for point in points.values() for piece in point.names())}
    if name is not None and name not in known:
        raise unknown_name("extension point or piece", name, known)
    for noun, point in points.items():
        for piece, kind in point.classes().items():
            if name not in (None, noun, piece):
                continue
            summary = (getdoc(kind) or "").partition("\n")[0]
            out.print(
                Text.assemble(f"{noun}  ", (piece, "bold"), f"  {summary} Source: {kind.source}; {kind.exactness}.")
            )
            for setting, text in described(kind).items():
                if name == piece:
                    out.print(f"    {setting}  {text}")


def extension_points() -> "Mapping[str, Registry[Any]]":
    """Return the registry of every extension point by its noun; every package of the library is imported for that."""
    from ..registry import registries

    for root in ("erasure", "erasure.pipelines", "erasure.eval"):
        for module in pkgutil.walk_packages(import_module(root).__path__, f"{root}."):
            if module.ispkg:
                import_module(module.name)
    return dict(sorted(registries().items()))
