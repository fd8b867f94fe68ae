"""The two consoles of the command, its tables, bars and the line of an error."""

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def fail(message: str) -> None:
    """Print one line on stderr and end with exit code 2."""
    err.print(f"erasure: {' '.join(message.split())}", markup=False)
    raise typer.Exit(2)


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_whole(table: Table) -> None:
    """Print a table with nothing cut off, also where the terminal is narrower or there is none."""
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(out.width, needed), highlight=False).print(table)
