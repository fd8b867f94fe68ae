"""The two consoles of the command. Text of a user is printed as it is, never as markup."""

import json
from collections.abc import Mapping

import typer
from rich.console import Console
from rich.table import Table

out = Console(soft_wrap=True, highlight=False, markup=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def fail(message: str) -> None:
    """Print one line on stderr and end with exit code 2."""
    err.print(f"erasure: {' '.join(message.split())}")
    raise typer.Exit(2)


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=1, ensure_ascii=False))


def print_whole(table: Table) -> None:
    """Print a table with nothing cut off, also where the terminal is narrower or there is none."""
    width = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(out.width, width), highlight=False, markup=False).print(table)
