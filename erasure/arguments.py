"""Check of the arguments of public functions by their annotations, so that a wrong one is one line."""
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownMemberType=false
# Values and annotations are those of any function.

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
from typing_extensions import Unpack

from .errors import InputError, unknown_name
from .io.files import check_path
from .io.text import one_line, shortened

Item = TypeVar("Item", bound=Callable[..., Any])

_NUMBERS: Mapping[Any, tuple[type, ...]] = {
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    bool: (bool, np.bool_),
}
_WORDS: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Path: "a Path",
    types.NoneType: "None",
}


def checks_arguments(item: Item) -> Item:
    """Make a function refuse arguments that its annotations do not allow; of a class, its making and public methods.

    Every refusal is an InputError of one line, raised before anything is done. A call with a name too many or too few
    stays Python's own TypeError.

    Args:
        item: Function or class; as a decorator, the topmost one.
    """
    if not inspect.isclass(item):
        return cast("Item", _checking(item))
    for name, member in list(vars(item).items()):
        binding = type(member) if isinstance(member, classmethod | staticmethod) else None
        function = member.__func__ if binding else member
        if inspect.isfunction(function) and (name == "__init__" or not name.startswith("_")):
            checking = _checking(function)
            setattr(item, name, binding(checking) if binding else checking)
    return cast("Item", item)


def _checking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks its arguments first."""
    signature = inspect.signature(function)
    annotations = functools.cache(lambda: _annotations(function, signature))

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            arguments = signature.bind(*args, **options).arguments
        except TypeError:
            return function(*args, **options)  # which raises it
        where = _place(function, arguments)
        for name, annotation, value in _pairs(where, signature.parameters, annotations(), arguments):
            if not _fits(value, annotation):
                raise _refusal(f"{where}.{name}", annotation, value)
            if isinstance(value, str | Path) and Path in (annotation, *get_args(annotation)):
                check_path(value, f"{where}.{name}")
        return function(*args, **options)

    return call


def _place(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return the name of a function in an error, with the class by which a method is called."""
    owner = next((arguments[name] for name in ("self", "cls") if name in arguments), None)
    if owner is None:
        return function.__qualname__.rpartition("<locals>.")[2]
    kind = owner.__name__ if inspect.isclass(owner) else type(owner).__name__
    return kind if function.__name__ == "__init__" else f"{kind}.{function.__name__}"


def _annotations(function: Callable[..., Any], signature: inspect.Signature) -> dict[str, Any]:
    """Return the annotation of each parameter that has one, the object or class of a method apart."""
    names = {name: each.annotation for name, each in signature.parameters.items() if name not in ("self", "cls")}
    known = {name: annotation for name, annotation in names.items() if annotation is not inspect.Parameter.empty}
    holder = types.SimpleNamespace(
        __annotations__=known
    )  # without the result, whose types may be imported for checkers
    return get_type_hints(holder, inspect.unwrap(function).__globals__)


def _pairs(
    where: str,
    parameters: Mapping[str, inspect.Parameter],
    annotations: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Iterator[tuple[str, Any, object]]:
    """Yield name, annotation and value of each argument, those that one parameter collects one by one."""
    for name in (name for name in annotations if name in arguments):
        annotation, value = annotations[name], arguments[name]
        if parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((name, annotation, each) for each in value)
        elif parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
            yield name, annotation, value
        elif get_origin(annotation) is not Unpack:
            yield from ((option, annotation, each) for option, each in value.items())
        else:
            fields = get_type_hints(get_args(annotation)[0])
            for option, each in value.items():
                if option not in fields:
                    raise unknown_name(f"argument of {where}", option, fields)
                yield option, fields[option], each


def _fits(value: object, annotation: Any) -> bool:
    """Return True if a value is of an annotation's type, its members included where it can be read twice."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is type:
        return inspect.isclass(value)
    if isinstance(annotation, TypeVar):
        return _fits(value, annotation.__bound__ or Any)
    if annotation in _NUMBERS:
        return isinstance(value, _NUMBERS[annotation]) and (annotation is bool or not isinstance(value, bool))
    kind = getattr(annotation, "array_type", origin or annotation)  # of a tensor's shape, its class alone
    if annotation is Any or not inspect.isclass(kind):
        return True
    if parts and isinstance(value, str | bytes):
        return False  # a text is no list of its letters
    return isinstance(value, kind) and _members_fit(value, kind, parts)


def _members_fit(value: Any, kind: Any, parts: tuple[Any, ...]) -> bool:
    if not parts or not _is_container(kind) or not isinstance(cast("object", value), Collection):
        return True
    if issubclass(kind, Mapping):
        return all(_fits(key, parts[0]) and _fits(each, parts[1]) for key, each in value.items())
    if issubclass(kind, tuple) and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return all(_fits(each, parts[0]) for each in value)


def _is_container(kind: type) -> bool:
    """Return True for the containers of Python itself, whose annotations have the types of their members."""
    return issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc")


def _refusal(where: str, annotation: Any, value: object) -> InputError | LookupError:
    if get_origin(annotation) is Literal and isinstance(value, str):
        return unknown_name(where, value, map(str, get_args(annotation)))
    remedy = f" Write [{value!r}]." if isinstance(value, str) and _fits([value], annotation) else ""
    return InputError(f"{where}: expected {_words(annotation)}, got {one_line(shortened(value))}.{remedy}")


def _words(annotation: Any) -> str:
    """Return an annotation in words: "a text or a Path"."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(map(_words, parts)))
        return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is Callable or annotation is Callable:
        return "a function"
    kind = getattr(annotation, "array_type", origin or annotation)
    if not inspect.isclass(kind) or annotation in _WORDS:
        return _WORDS.get(annotation, "a value")
    members = [re.sub(r"\ba ((?:whole )?\w+)", r"\1s", _words(part)) for part in parts]
    if issubclass(kind, Mapping):
        return f"a mapping of {' to '.join(members)}" if members else "a mapping"
    if parts and _is_container(kind):
        noun = "a tuple" if issubclass(kind, tuple) else "a list"
        return f"{noun} of {members[0]}" if len(parts) == 1 or parts[-1] is Ellipsis else f"{noun} of {len(parts)}"
    return kind.__name__
