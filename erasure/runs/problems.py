"""Validation errors of a config as lines of the form "key: expected something, got value"."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ..errors import ErasureError, expectation, unknown_name
from ..io.text import shortened
from ..registry import PieceError


def explained(error: ValidationError, keys: Sequence[str], parts: Mapping[str, type]) -> str:
    """Return all errors of a config on one line.

    Args:
        error: Result of the validation.
        keys: Keys of the config.
        parts: Dataclasses of the keys that hold further keys.
    """
    problems = error.errors()
    within = {problem["loc"][:-depth] for problem in problems for depth in range(1, len(problem["loc"]) + 1)}
    # A list with invalid members is also reported as too short.
    reported = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in within]
    return " ".join(_line(problem, keys, parts) for problem in reported)


def _line(problem: ErrorDetails, keys: Sequence[str], parts: Mapping[str, type]) -> str:
    where, value = ".".join(map(str, problem["loc"])) or "config", problem["input"]
    cause = problem.get("ctx", {}).get("error")
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parent, _, key = where.rpartition(".")
        known = _known_keys(problem["loc"][:-1], keys, parts)
        stack = parent == "eraser" and "parts" in known
        hint = f" It is a stack: set those of a part, such as eraser.parts.0.{key}." if stack else ""
        return f"{parent or 'config'}: {unknown_name('key', key, known)}{hint}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{where}: expected a value, got none."
    if isinstance(cause, PieceError):
        return " ".join(f"{where}.{line}" for line in cause.lines)
    if isinstance(cause, ErasureError):
        kind = parts[str(problem["loc"][0])]
        head, _, line = str(cause).partition(".")  # of "concept.anchor: ..." or "duge.overshoot: ..."
        named = head in (getattr(kind, "name", ""), kind.__name__.lower())
        return f"{where}.{line}" if named else f"{where}: {cause}"
    expected = expectation(problem["msg"])
    if problem["loc"][:1] == ("concepts",) and len(problem["loc"]) <= 2:
        return _concept_line(where, value, in_list=len(problem["loc"]) == 2)
    remedy = f" Write [{shortened(value)}]." if "expected a list" in expected and isinstance(value, str) else ""
    return f"{where}: {expected}, got {shortened(value)}.{remedy}"


def _concept_line(where: str, value: object, *, in_list: bool) -> str:
    """Return the error of a value in the place of a concept, or of the list of all, with the form that is right."""
    name = value if isinstance(value, str) and value.strip() else "cat"
    form = f"{{target: {shortened(name)}}}"
    expected, example = ("a concept by its keys", form) if in_list else ("a list of concepts", f"[{form}]")
    return f"{where}: expected {expected}, got {shortened(value)}. Write {example}."


def _known_keys(path: Sequence[int | str], keys: Sequence[str], parts: Mapping[str, type]) -> list[str]:
    """Return the keys that are valid at a path of a config."""
    if not path:
        return list(keys)
    kind = parts[str(path[0])]
    for key in path[1:]:
        inner = get_type_hints(kind)[key] if isinstance(key, str) else kind
        kind = next(each for each in (inner, *get_args(inner)) if is_dataclass(each))
    names = [item.name for item in fields(kind)]
    return ["name", *names] if path == ("eraser",) and "name" not in names else names
