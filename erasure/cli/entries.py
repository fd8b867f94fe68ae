"""Entries of a ledger as lines, tables and JSON."""

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from erasure.eval.protocols.ledger_measures import LedgerMeasures

    from ..ledger import Entry, Ledger


def targets_of(entry: "Entry") -> str:
    """Return the names of the concepts of an entry."""
    return ", ".join(concept.target for concept in entry.concepts)


def standing_names(ledger: "Ledger") -> str:
    """Return the concepts that stand removed, each with its entry."""
    return ", ".join(f"{targets_of(entry)} ({entry.id})" for entry in ledger.standing) or "nothing"


def entry_json(entry: "Entry", ledger: "Ledger") -> dict[str, Any]:
    """Return an entry with the names of its concepts, and its requests in full."""
    data = entry.as_json()
    return {
        **data,
        "concepts": [concept.target for concept in entry.concepts],
        "requests": data["concepts"],
        "approximate": entry.id in ledger.approximate,
        "approximate_parts": list(ledger.approximate_parts(entry.id)),
    }


def step_json(entry: "Entry", measured: dict[str, Any] | None) -> dict[str, Any]:
    """Return an entry and its measured rates for a JSON document."""
    step = {
        "id": entry.id,
        "concepts": [concept.target for concept in entry.concepts],
        "method": entry.method,
        "settings": entry.settings,
        "seed": entry.seed,
        "seconds": entry.seconds,
    }
    return {**step, **(measured or {"efficacy": None, "retention": {"near": None, "far": None}, "n": None})}


def entry_line(entry: "Entry", measured: dict[str, Any] | None) -> str:
    """Return one line about an entry: method, seconds and measured rates."""
    start = f"{entry.id} {targets_of(entry)}: {entry.shown_method}"
    if entry.seconds is not None:
        start += f", {entry.seconds:.1f} s"
    if measured is None:
        return start
    rates = (
        f"efficacy {_rate(measured['removed'][measured['worst']]['efficacy'])}",
        *(f"{role} {_rate(measured['kept'].get(role, {}).get('retention'))}" for role in ("near", "far")),
    )
    count, seconds = measured["pictures"], measured["measure_seconds"]
    return f"{start}; {', '.join(rates)}; {count} images, {seconds:.0f} s"


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "–"
    low, high = rate["interval"]
    return f"{rate['value']:.2f} [{low:.2f}, {high:.2f}]"


def removals_table(ledger: "Ledger", record: "LedgerMeasures") -> Table:
    """Return the standing entries and the rates measured after each.

    An interval is below its rate, so that 80 columns suffice.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "removed", "method", "efficacy", "near", "far", "change", "fit s"):
        table.add_column(
            column, justify="right" if column in ("change", "fit s") else "left", no_wrap=column != "removed"
        )
    for entry in ledger.standing:
        measured = record.measured(entry)
        cells = [""] * 4
        if measured is not None:
            kept = [measured["kept"].get(role) for role in ("near", "far")]
            rates = [measured["removed"][measured["worst"]]["efficacy"], *(k and k["retention"] for k in kept)]
            changed = kept[1] or kept[0]
            cells = [*map(_rate_in_two, rates), f"{changed['distance']['value']:.3f}" if changed else ""]
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        table.add_row(entry.id, Text(targets_of(entry)), entry.shown_method, *cells, seconds)
    return table


def _rate_in_two(rate: dict[str, Any] | None) -> str:
    return "–" if rate is None else f"{rate['value']:.2f} of {rate['n']}\n{_rate(rate).partition(' ')[2]}"
