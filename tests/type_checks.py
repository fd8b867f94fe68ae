"""Types checked at run time, at a price that a suite can pay: each annotation of the product, at every call.

jaxtyping's import hook decorates every function and dataclass with `jaxtyping.jaxtyped`, which builds two checking
functions for each, binds every call, and checks the arguments again with the result. Shapes alone need that, whose axes
must agree among arguments and result. `install` puts `checked` in its place, which refuses the same calls:

- a function without shapes is checked by beartype alone;
- a function inside another, defined anew at each call of that, shares what was built for the first;
- a member of a protocol that an object's class defines is there, and not read. Up to Python 3.11 `isinstance` reads
  every one, properties included: for the device of a denoiser, a walk through its modules.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
import typing_extensions
from beartype import BeartypeConf, beartype

_shaped = jaxtyping.jaxtyped
# Like jaxtyping's own: a TypeError, which the product may catch as what the same call ends in without the checks.
_plain = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_ProtocolType = type(typing.Protocol)
_met_by_value = _ProtocolType.__instancecheck__
_inner: dict[types.CodeType, Callable[..., Any]] = {}


def install() -> None:
    """Put `checked` in the place of `jaxtyping.jaxtyped`, before the hook decorates a module."""
    jaxtyping.jaxtyped = checked
    _ProtocolType.__instancecheck__ = _is_met


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """Return the decorator that the hook gives a function or a class."""

    def decorate(item: Any) -> Any:
        if inspect.isclass(item):
            if dataclasses.is_dataclass(item) and "__init__" in vars(item):
                item.__init__ = _checked_function(item.__init__, typechecker)
            return item
        if not inspect.isfunction(item):
            return _shaped(item, typechecker=typechecker)
        return _checked_function(item, typechecker)

    return decorate


def _checked_function(function: Any, typechecker: Any) -> Callable[..., Any]:
    if "<locals>" in function.__qualname__:
        return _checked_inner(function, typechecker)
    if any(map(_needs_scope, function.__annotations__.values())):
        return _shaped(function, typechecker=typechecker)
    return _plain(function)


def _needs_scope(annotation: Any) -> bool:
    """Return True for an annotation with a shape in it, or with a name that is resolved later."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return typing.get_origin(annotation) is not typing.Literal and any(map(_needs_scope, parts))


def _checked_inner(function: Any, typechecker: Any) -> Callable[..., Any]:
    """Return an inner function, checked by what was built for the first one of the same code and annotations."""
    check = _inner.get(function.__code__)
    if check is None or check.__annotations__ != function.__annotations__:
        check = _inner[function.__code__] = _shaped(_calling(function), typechecker=typechecker)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return check(*args, **kwargs, checked_function=function)

    return call


def _calling(function: Any) -> Callable[..., Any]:
    """Return a function of the same signature, and one argument more: the function that it calls."""

    @functools.wraps(function)
    def call(*args: Any, checked_function: Callable[..., Any], **kwargs: Any) -> Any:
        return checked_function(*args, **kwargs)

    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    rest = [parameters.pop()] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    parameters += [inspect.Parameter("checked_function", inspect.Parameter.KEYWORD_ONLY), *rest]
    call.__signature__ = signature.replace(parameters=parameters)
    return call


def _is_met(protocol: Any, instance: Any) -> bool:
    if getattr(protocol, "_is_runtime_protocol", False):
        return all(hasattr(instance, member) for member in _undefined(type(instance), protocol))
    return _met_by_value(protocol, instance)


@functools.cache
def _undefined(kind: type, protocol: type) -> list[str]:
    """Return the members of a protocol that a class leaves to its objects."""
    return [member for member in typing_extensions.get_protocol_members(protocol) if not hasattr(kind, member)]
