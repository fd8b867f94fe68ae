"""Processes that do one piece of work together, as `accelerate launch` starts them; the first of them writes."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ErasureError, LostProcessError, is_of_memory, reason
from .text import shortened

if TYPE_CHECKING:
    from accelerate import PartialState

Item = TypeVar("Item")
Result = TypeVar("Result")

# The first may fit and measure for long before the others hear of it; the launcher ends them if it fails.
_LONGEST_WAIT = timedelta(days=7)
_TOGETHER: ContextVar[bool] = ContextVar("together", default=False)


def count() -> int:
    """Return the number of processes that were launched together."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ else 1


def is_first() -> bool:
    """Return True in a process of its own, and in the first of several."""
    return count() == 1 or os.environ.get("RANK") == "0"


def local_number() -> int:
    """Return the number of this process on its machine, which is that of its device."""
    return int(os.environ["LOCAL_RANK"]) if count() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """Have the processes share their work out for the length of a `with`, inside which all of them do the same calls.

    In a process of its own nothing changes.
    """
    if count() == 1:
        yield
        return
    state()
    with _set(value=True):
        yield


def are_together() -> bool:
    """Return True inside `together`, but not in what the first process does by itself."""
    return _TOGETHER.get()


def share() -> slice:
    """Return this process's share of items that all processes have in the same order."""
    return slice(int(os.environ["RANK"]), None, count()) if are_together() else slice(None)


def shared_out(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Return the results of items, each of which one of the processes works on."""
    results = [work(item) for item in items[share()]]
    if not are_together():
        return results
    from torch.distributed import all_gather_object

    parts: list[Any] = [None] * count()
    with _with_the_others():
        all_gather_object(parts, results)
    return [parts[i % count()][i // count()] for i in range(len(items))]


def by_first(work: Callable[[], Result]) -> Result:
    """Return, in all processes, the result of some work that the first does; an `ErasureError` is raised in all.

    Raises:
        LostProcessError: One of them has ended.
    """
    if not are_together():
        return work()
    from torch.distributed import broadcast_object_list

    outcome: list[Any] = [None, None]
    if is_first():
        try:
            with alone():
                outcome[0] = work()
        except ErasureError as error:
            outcome[1] = error
    with _with_the_others():
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def wait() -> None:
    """Wait until all processes that work together have come here; see `meet`."""
    if are_together():
        meet()


def meet() -> None:
    """Wait until all processes that were launched together have come here, whether they share work out or not.

    Raises:
        LostProcessError: One of them has ended.
    """
    with _with_the_others():
        state().wait_for_everyone()


@contextmanager
def alone() -> Iterator[None]:
    """Have this process do by itself what is called inside a `with`, for its share of what `together` is about."""
    with _set(value=False):
        yield


def state() -> "PartialState":
    """Return accelerate's state of this process, in the group of those that were launched together.

    accelerate makes no group of processes without an accelerator unless it is said that they compute on the CPU.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=count() > 1 and not torch.cuda.is_available(), timeout=_LONGEST_WAIT)


@contextmanager
def _with_the_others() -> Iterator[None]:
    """Turn the error of a connection whose other end is lost into one line."""
    try:
        yield
    except RuntimeError as error:  # of torch.distributed; its backends have no class of their own for it
        if is_of_memory(error):
            raise
        raise LostProcessError(
            f"processes: expected {count()} that go on together, got one that has ended"
            f" ({shortened(reason(error))}). Its own error says why; the same command goes on with what is finished."
        ) from None


@contextmanager
def _set(*, value: bool) -> Iterator[None]:
    token = _TOGETHER.set(value)
    try:
        yield
    finally:
        _TOGETHER.reset(token)
