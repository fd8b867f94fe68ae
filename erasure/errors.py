"""Every error a caller can cause, in one small tree.

A message is one line: `<where>: expected <what>, got <value>. <what to do>`. The front doors turn any of these into one
line on stderr; whatever else is raised is a fault of this library.
"""

import difflib
import re
from collections.abc import Iterable


class ErasureError(Exception):
    """Base class of all errors; a front door may catch this and nothing wider."""


class InputError(ErasureError, ValueError):
    """A value that cannot be used."""


class ExportError(InputError):
    """An export that differs from what was to be written once it is read back."""


class UnknownNameError(ErasureError, LookupError):
    """An unknown name."""


class MissingExtraError(ErasureError, ImportError):
    """An optional package that the call needs is not installed."""


class BaseMismatchError(ErasureError, ValueError):
    """An edit or a ledger that was made for another base model."""


class LedgerError(ErasureError, ValueError):
    """A ledger that is damaged, or an operation that it does not allow."""


class AlreadyRemovedError(LedgerError):
    """A concept that stands removed already."""


class LostProcessError(ErasureError, RuntimeError):
    """One of several processes that work together has ended before the others."""


class SolveError(ErasureError, ArithmeticError):
    """A linear system that has no usable solution."""


def unknown_name(what: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an unknown `name`, with the nearest known one as a suggestion.

    Args:
        what: Kind of the thing named, such as "eraser" or "uce setting".
        name: The unknown name.
        known: Every known name.
    """
    known, text = sorted(known), name if isinstance(name, str) else repr(name)
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(text.casefold(), by_folded, n=1, cutoff=0.6)
    suggestion = f" Did you mean {by_folded[near[0]]!r}?" if near else ""
    return UnknownNameError(f"Unknown {what} {text!r}.{suggestion} Known: {', '.join(known) or 'none'}.")


_WORDS = (
    (r", unable to parse string as an? \w+", ""),
    (r"^Value error, ", ""),
    (r"^\w+ should have (at (?:least|most) \d+ items?) after.*", r"expected \1"),
    (r"^Input should be (greater|less)", r"expected a number \1"),
    (r"^Input should be a valid array\b", "expected a list"),
    (r"^Input should be (an object|a valid dictionary)\b", "expected keys with values"),
    (r"^Input should be a valid integer\b", "expected an integer"),
    (r"^Input should be a valid ", "expected a "),
    (r"^Input should be ", "expected "),
)
"""Patterns of pydantic's messages and their replacements, applied in this order."""


def expectation(message: str) -> str:
    """Turn a message of pydantic ("Input should be greater than 0") into "expected a number greater than 0"."""
    for pattern, ours in _WORDS:
        message = re.sub(pattern, ours, message)
    return message


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty.

    What a terminal obeys or does not show is written as its escape: other libraries quote the files that they read.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in line)


def is_of_memory(error: BaseException) -> bool:
    """Return True for an error of a device that has too little memory, and of a size that no memory has."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, whose import takes a second
        or (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY))
    )


_NO_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "integer multiplication overflow")
