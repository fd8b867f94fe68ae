"""Classes found by lying in a package: a new eraser or benchmark is one new file."""

import inspect
import pkgutil
from abc import ABC
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from .errors import ErasureError, InputError, unknown_name


class Plugin(ABC):
    """What is found so.

    Attributes:
        name: Tells one from another.
    """

    name: ClassVar[str]


AnyPlugin = TypeVar("AnyPlugin", bound=Plugin)
AnySettings = TypeVar("AnySettings")


def classes_in(package: str, path: Iterable[str], base: type[AnyPlugin]) -> dict[str, type[AnyPlugin]]:
    """Return the concrete subclasses of `base` that the modules of a package define, by their `name`.

    Args:
        package: The package's `__name__`.
        path: Its `__path__`.
        base: What they derive from.
    """
    modules = [import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path)]
    here = [(module, kind) for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)]
    return {
        kind.name: kind
        for module, kind in here
        if issubclass(kind, base) and not inspect.isabstract(kind) and kind.__module__ == module.__name__
    }


def with_settings(kind: type[AnySettings], settings: Mapping[str, Any], *, where: str) -> AnySettings:
    """Return what is a dataclass of settings with these checked strictly: the text "1.0" is no number.

    Args:
        kind: Its class.
        settings: By field.
        where: Stands before a setting's name in what is said of its value.

    Raises:
        UnknownNameError: It has no such setting.
        InputError: Values of a wrong type or out of range, all named at once.
    """
    known = list(inspect.signature(kind).parameters)
    for key in settings:
        if key not in known:
            raise unknown_name(f"{getattr(kind, 'name', kind.__name__)} setting", key, known)
    try:
        # In strict mode only JSON can be read as a dataclass; its arrays become the tuples of the fields.
        return TypeAdapter(kind).validate_json(to_json(settings), strict=True)
    except ValidationError as error:
        raise InputError(" ".join(_said(problem, where) for problem in error.errors())) from error


def described(kind: type) -> dict[str, str]:
    """Return what a class's docstring says of each of its attributes, on one line each."""
    found: dict[str, str] = {}
    name = ""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        head, colon, rest = line.strip().partition(": ")
        if line.startswith("    ") and line[4:5] not in ("", " ") and colon and head.isidentifier():
            name, found[head] = head, rest
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def _said(problem: ErrorDetails, where: str) -> str:
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ErasureError):  # of a plugin that checks its settings together: it says where
        return str(cause)
    return f"{where}{'.'.join(map(str, problem['loc']))}: {_lowered(problem['msg'])}, got {problem['input']!r}."


def _lowered(message: str) -> str:
    """Turn pydantic's "Input should be ..." into this library's "expected ..."."""
    said = message.removeprefix("Value error, ")
    for pydantic, ours in ((" be greater", " be a number greater"), (" be less", " be a number less")):
        said = said.replace(f"Input should{pydantic}", f"Input should{ours}")
    return said.replace("Input should be", "expected")
