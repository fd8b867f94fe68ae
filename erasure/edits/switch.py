"""Edits that are turned on and off in a moment, for comparisons."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from ..arguments import checks_arguments


@checks_arguments
class Switch:
    """An edit that can be turned on and off; see `Edit.switched`.

    Attributes:
        on: Whether the edit is in force.
    """

    def __init__(self, in_force: Callable[[], AbstractContextManager[object]]) -> None:
        self._in_force = in_force
        self._inside = ExitStack()
        self.on = False

    def turn(self, *, on: bool) -> None:
        """Put the edit in force or out of it; nothing happens if it is in that state already."""
        if on and not self.on:
            self._inside.enter_context(self._in_force())
        elif not on:
            self._inside.close()
        self.on = on
