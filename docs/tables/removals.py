"""Tables of removals: runs of the command, the ledger that records them, and the settings of each method."""

from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from .layout import (
    NOTHING,
    changed_settings,
    default_of,
    fit_seconds,
    held_out_cell,
    rate_cell,
    read_runs,
    share_cell,
    table,
    target_names,
)

_PHRASINGS = ("plain", "held_out")


def removal(source: str, results: Path) -> str:
    """Return one row a run: how well its last state does, over all that it removed."""
    rows = [
        (
            run["steps"][-1]["method"],
            changed_settings(run),
            ", ".join(target_names(run["steps"])),
            share_cell(run["steps"][-1], "efficacy"),
            held_out_cell(run["steps"][-1]),
            *(share_cell(run["steps"][-1], name) for name in ("near", "far")),
            fit_seconds(run["steps"]),
        )
        for _, run in read_runs(source, results)
        if run.get("steps") and run["steps"][-1].get("efficacy") is not None
    ]
    headings = (
        "method",
        "settings",
        "removed, in order",
        "efficacy",
        "held-out efficacy",
        "near kept",
        "far kept",
        "seconds",
    )
    return table(headings, rows, read_runs(source, results))


def removal_steps(source: str, results: Path) -> str:
    """Return one row a removal: the whole sequence of each run."""
    rows = [
        (
            step["method"],
            changed_settings(run),
            f"{step['id']} {', '.join(target_names([step]))}",
            share_cell(step, "efficacy"),
            held_out_cell(step),
            *(share_cell(step, name) for name in ("near", "far")),
            step.get("worst", ""),
            fit_seconds([step]),
        )
        for _, run in read_runs(source, results)
        for step in run.get("steps", ())
        if step.get("efficacy") is not None
    ]
    headings = (
        "method",
        "settings",
        "after",
        "efficacy",
        "held-out efficacy",
        "near kept",
        "far kept",
        "most is left of",
        "seconds",
    )
    return table(headings, rows, read_runs(source, results))


def settings(source: str, results: Path) -> str:
    """Return one row a setting of an eraser, a guidance or what learns, from fields and the docstrings that explain."""
    from erasure.erasers import eraser_class, eraser_names
    from erasure.guidance import guidances
    from erasure.personalize.class_diffusion import ClassDiffusion
    from erasure.personalize.forgetting import Forgetting
    from erasure.registry import described

    learning = {kind.name: kind for kind in (ClassDiffusion, Forgetting)}
    erasers = {name: eraser_class(name) for name in eraser_names()}
    known: dict[str, Any] = {**guidances(), **learning, **erasers}
    kind = known[source]
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        meanings |= described(base) if is_dataclass(base) else {}
    rows = [(f"`{field.name}`", _shown_default(field), meanings.get(field.name, "")) for field in fields(kind)]
    return table(("setting", "default", "meaning"), rows, ())


def _shown_default(field: Field[Any]) -> str:
    return "to be given" if (default := default_of(field)) is MISSING else f"`{default!r}`"


def uce_defaults(source: str, results: Path) -> str:
    """Return one row a setting of the sweep: what differs from the former defaults, in predictions and in images."""
    [(path, run)] = read_runs(source, results) or [(Path(), {})]
    if not run:
        return NOTHING
    former, images = run["former"], run["images"]
    rows = []
    for row in sorted(run["predictions"], key=lambda row: row["settings"] != former):
        changed = ", ".join(f"{name}={value}" for name, value in row["settings"].items() if former[name] != value)
        seen = next((image for image in images if image["settings"] == row["settings"]), None)
        shares = (f"{row[name]:.2f}" for name in ("plain", "held_out", "near", "far", "near_few", "far_few"))
        rates = (rate_cell(seen[name]) if seen else "–" for name in ("plain", "held_out", "near", "far"))
        named = changed or "former defaults"
        rows.append((f"**{named}**" if row["settings"] == run["chosen"] else named, *shares, *rates))
    headings = (
        *("settings", "left, plain", "left, held-out", "near moved", "far moved", "near moved, few", "far moved, few"),
        *("efficacy", "held-out efficacy", "near kept", "far kept"),
    )
    return table(headings, rows, [(path, run)])


def uce_places(source: str, results: Path) -> str:
    """Return one row an exchange of states: the share of a concept that is left, by the former and chosen defaults."""
    [(path, run)] = read_runs(source, results) or [(Path(), {})]
    if not run:
        return NOTHING
    former, chosen = run["diagnosis"]
    rows = [
        (place, *(f"{diagnosed['exchanged'][place][key]:.2f}" for diagnosed in (former, chosen) for key in _PHRASINGS))
        for place in former["exchanged"]
    ]
    headings = ("exchanged", "former, plain", "former, held-out", "chosen, plain", "chosen, held-out")
    return table(headings, rows, [(path, run)])
