"""The two consoles of the command. Text of a user is printed as it is, never as markup or as a terminal's commands."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment
from rich.table import Table

from ..io.processes import is_first
from ..io.text import is_control, one_line, visible


class _Visible:
    """Renderable whose control characters are shown as escapes.

    Args:
        printed: Text or table.
    """

    def __init__(self, printed: ConsoleRenderable) -> None:
        self._printed = printed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._printed, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _ShowControls(RenderHook):
    """Hook of a console that makes all it prints visible."""

    def process_renderables(self, renderables: Iterable[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(printed) for printed in renderables]


def _console(**options: bool | int) -> Console:
    # Of processes that were launched together the first speaks.
    console = Console(highlight=False, markup=False, emoji=False, quiet=not is_first(), **options)  # type: ignore[arg-type]
    console.push_render_hook(_ShowControls())
    return console


out = _console(soft_wrap=True)
err = _console(stderr=True, soft_wrap=True)


def show_error(message: str) -> None:
    """Print one line on stderr."""
    line = one_line(message)
    err.quiet = False
    err.print(line if line.startswith("erasure: ") else f"erasure: {line}")


def fail(message: str, code: int = 2) -> None:
    """Print one line on stderr and end with an exit code."""
    show_error(message)
    raise typer.Exit(code)


def note_on(console: Console, logger: str) -> None:
    """Print the messages of a logger on a console from now on, each once and as a line of its own."""
    receiver = logging.getLogger(logger)
    receiver.setLevel(logging.INFO)
    receiver.handlers = [handler for handler in receiver.handlers if not isinstance(handler, _Notes)]
    receiver.addHandler(_Notes(console))


class _Notes(logging.Handler):
    """Handler that prints each message that is not the last one again."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console, self._last = console, ""

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) != self._last:
            self._last = message
            self._console.print(message, style="dim")


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document on stdout."""
    if out.quiet:
        return
    text = json.dumps(document, indent=1, ensure_ascii=False)
    print("".join(f"\\u{ord(sign):04x}" if sign != "\n" and is_control(sign) else sign for sign in text))


def print_whole(table: Table) -> None:
    """Print a table with nothing cut off, also where the terminal is narrower or there is none."""
    width = out.measure(table, options=out.options.update(max_width=1000)).maximum
    _console(width=max(out.width, width)).print(table)
