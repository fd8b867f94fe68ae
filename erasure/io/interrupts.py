"""Interrupts of the command: one line and exit code 2 at any moment, imports included.

`arm` replaces Python's handler of SIGINT, in the process of the command alone. An interrupt of an import ends the
process at once: lazy loaders swallow what is raised within an import, or turn it into other errors. Any other interrupt
is a KeyboardInterrupt, so that temporary files are deleted on the way out.
"""

import itertools
import os
import signal
import sys
from pathlib import Path
from types import FrameType

EXIT_CODE = 2
MESSAGE = "erasure: Interrupted. Finished entries stay in the ledger; no file is half written."

_interrupted = False


def arm() -> None:
    """Handle SIGINT from now on, if this process is the command's and does not ignore it."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _end_by_unraisable


def disarm() -> None:
    """Ignore SIGINT from now on: the work is done, and the end of an interpreter cannot be interrupted in one line."""
    if signal.getsignal(signal.SIGINT) is _handle:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def release() -> None:
    """Give SIGINT back to Python, for a server that ends by it."""
    if signal.getsignal(signal.SIGINT) is _handle:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_interrupted() -> bool:
    """Return True once the command was interrupted."""
    return _interrupted


def _is_command() -> bool:
    arguments = sys.orig_argv
    return Path(sys.argv[0]).stem == "erasure" or any(
        flag == "-m" and module in ("erasure", "erasure.cli", "erasure.cli.main")
        for flag, module in itertools.pairwise(arguments)
    )


def _handle(number: int, frame: FrameType | None) -> None:
    global _interrupted
    if _interrupted or _is_starting(frame):
        _end()
    _interrupted = True
    raise KeyboardInterrupt


def _is_starting(frame: FrameType | None) -> bool:
    """Return True if an import is under way, or the command has not begun."""
    begun = False
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        begun = begun or frame.f_code.co_name == "invoke"
        frame = frame.f_back
    return not begun


def _end_by_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """End the process if an interrupt fell into a finaliser, which swallows it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _end()
    sys.__unraisablehook__(unraisable)


def _end() -> None:
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
    os.write(2, show_cursor + b"\n" * os.isatty(2) + MESSAGE.encode() + b"\n")
    os._exit(EXIT_CODE)
