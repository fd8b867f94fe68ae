"""Erasers by the time that a removal may take: `erasure remove --budget minutes`."""

from functools import cache
from importlib import resources
from typing import Any

from ..errors import unknown_name
from ..io.yaml_text import plain_yaml

_FILE = "budgets.yaml"


def budget_names() -> tuple[str, ...]:
    """Return the names of the budgets, the smallest first."""
    return tuple(_erasers())


def eraser_of_budget(budget: str) -> Any:
    """Return the eraser of a budget, as the key `eraser` of a config has it.

    Raises:
        UnknownNameError: There is no such budget.
    """
    if budget not in _erasers():
        raise unknown_name("budget", budget, budget_names())
    chosen = _erasers()[budget]
    return {"name": chosen} if isinstance(chosen, str) else {"name": "stack", "parts": chosen}


@cache
def _erasers() -> dict[str, Any]:
    text = resources.files("erasure.configs").joinpath(_FILE).read_text(encoding="utf-8")
    return plain_yaml(text, _FILE)
