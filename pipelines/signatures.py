"""Calls that show what they take: a base pipeline's parameters, and those of what is put before it."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def with_call(pipeline: Class, call: Callable[..., Any], further: Iterable[inspect.Parameter]) -> Class:
    """Return a pipeline class with a call that has the base's parameters and further ones in its signature.

    Args:
        pipeline: The class; its bases are what is put before, and then the pipeline.
        call: Function of the pipeline and its arguments, called first; its docstring becomes the call's.
        further: Parameters beside the base's, by keyword only.
    """

    def __call__(self: object, *args: object, **kwargs: object) -> object:
        return call(self, *args, **kwargs)

    bound = list(inspect.signature(pipeline.__mro__[2].__call__).parameters.values())
    rest = [parameter for parameter in bound if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    parameters = [*(parameter for parameter in bound if parameter not in rest), *further, *rest]
    __call__.__doc__ = inspect.getdoc(pipeline.__mro__[1])
    __call__.__qualname__ = f"{pipeline.__name__}.__call__"
    __call__.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    pipeline.__call__ = __call__  # pyright: ignore[reportAttributeAccessIssue]
    return pipeline
