"""The report of a ledger: one HTML page that needs nothing else, and the run's facts as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from erasure.io.files import write_whole
from erasure.ledger import Entry, Ledger

from ..protocols.health import Course
from ..protocols.ledger_measures import LedgerMeasures, Strip
from .page import embedded, filled

# Larger images are embedded at this size: the page is looked at, the files beside it are the originals.
_LARGEST = 320
PLACES = ("run.json", "report.html", "measures/", "pictures/")
"""Files and folders in a ledger's folder that a removal writes beside its record."""
_GROUPS = {
    "removed": ("Removed", "should no longer be there"),
    "near": ("Kept, near", "most like what was removed; should stay"),
    "far": ("Kept, far", "everything else; should stay"),
}


@dataclass(frozen=True, kw_only=True)
class RemovalRow:
    """One removal of a report's table.

    Attributes:
        entry: The removal.
        approximate: Whether one beneath it was undone.
        measured: Measure after it; None if there is none.
    """

    entry: Entry
    approximate: bool
    measured: Mapping[str, Any] | None

    def as_view(self) -> dict[str, Any]:
        """Return the values of the template."""
        measured = self.measured
        anchors = [repr(concept.anchor) if concept.anchor else "nothing" for concept in self.entry.concepts]
        kept: Mapping[str, Any] = measured["kept"] if measured else {}
        return {
            "id": self.entry.id,
            "concepts": [concept.target for concept in self.entry.concepts],
            "method": self.entry.method,
            "becomes": ", ".join(dict.fromkeys(anchors)),
            "approximate": self.approximate,
            "seconds": self.entry.seconds,
            "measured": measured,
            "efficacy": measured and measured["removed"][measured["worst"]]["efficacy"],
            "near": kept.get("near", {}).get("retention"),
            "far": kept.get("far", {}).get("retention"),
            "distance": kept.get("far", {}).get("distance"),
        }


def removal_rows(record: LedgerMeasures) -> list[RemovalRow]:
    """Return the removals that stand, each with what was measured after it."""
    ledger = record.ledger
    return [
        RemovalRow(
            entry=entry,
            approximate=entry.id in ledger.approximate,
            measured=record.measured(entry),
        )
        for entry in ledger.standing
    ]


def write_report(record: LedgerMeasures, facts: Mapping[str, Any]) -> Path:
    """Write `report.html` and `run.json` into the ledger's folder and return the report's path.

    Args:
        record: Measures of the ledger; missing images of the page are sampled.
        facts: Facts of the run, from `erasure.runs.removal.facts`.

    Raises:
        InputError: The folder cannot be written.
    """
    ledger = record.ledger
    strips, rows = record.strips(), removal_rows(record)
    page = render(
        ledger,
        rows,
        strips,
        record.columns(),
        facts,
        skipped=record.skipped,
    )
    write_whole(ledger.path / "run.json", (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    path = ledger.path / "report.html"
    write_whole(path, page.encode())
    return path


def render(
    ledger: Ledger,
    rows: Sequence[RemovalRow],
    strips: Sequence[Strip],
    columns: Sequence[tuple[str, str | None]],
    facts: Mapping[str, Any],
    *,
    skipped: str | None,
) -> str:
    """Return the page."""
    removed = [concept.target for row in rows for concept in row.entry.concepts]
    last = rows[-1].measured if rows else None
    return filled(
        "report",
        title=f"Removed: {_listed(removed)}" if removed else "Nothing is removed",
        subtitle=f"from {ledger.base.name} ({ledger.base.fingerprint[:12]}), {_dated(rows)}",
        cards=_cards(rows[-1].as_view()) if last else [],
        last=last,
        health=((last or {}).get("health") or {}).get("abilities"),
        course=Course.of([row.measured for row in rows]).line,
        skipped=skipped if last is None else None,
        notes=_notes(ledger, rows),
        steps=[row.as_view() for row in rows],
        curve=Markup(erosion_curve(rows)),
        columns=columns,
        groups=_groups(
            strips, columns, {concept.target: row.entry.id for row in rows for concept in row.entry.concepts}
        ),
        pixelated=all(image.width < 128 for strip in strips for image in strip.images),
        facts=_facts(facts),
        settings=json.dumps(facts["config"], indent=2, ensure_ascii=False),
    )


def erosion_curve(rows: Sequence[RemovalRow]) -> str:
    """Return a drawing of what is gone and what stayed after each removal, as HTML; "" for fewer than two measured."""
    curve = _curve(rows)
    return "" if curve is None else filled("curve", curve=curve)


def _cards(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    measured = step["measured"]
    worst = measured["worst"]
    before = measured["removed"][worst]["before"]["value"]
    least = " (the worst of all removed)" if len(measured["removed"]) > 1 else ""
    say_removed = f"of images that ask for {worst}{least} do not show it; before it was {100 * before:.0f} %."
    near = "of images that showed one of the most similar concepts still do."
    far = "of images that showed something else still do."
    return [
        {"name": "Removed", "rate": step["efficacy"], "say": say_removed},
        {"name": "Kept, near", "rate": step["near"], "say": near},
        {"name": "Kept, far", "rate": step["far"], "say": far},
    ]


def _curve(rows: Sequence[RemovalRow]) -> dict[str, Any] | None:
    """Return where the lines of the erosion curve go, in the units of its drawing; None for fewer than two removals.

    Before the first removal all that was there is there, by what retention means; efficacy has no value then.
    """
    views = [row.as_view() for row in rows]
    if sum(view["measured"] is not None for view in views) < 2:
        return None
    left, right, top, bottom = 44.0, 704.0, 14.0, 194.0
    places = [left + (right - left) * i / len(views) for i in range(len(views) + 1)]

    def height(share: float) -> float:
        return bottom - (bottom - top) * share

    lines = []
    for key, name in (("efficacy", "removed"), ("near", "kept, near"), ("far", "kept, far")):
        rates = [(places[i], view[key]) for i, view in enumerate(views, 1) if view[key]]
        dots = [
            {
                "x": x,
                "y": height(rate["value"]),
                "low": height(rate["interval"][0]),
                "high": height(rate["interval"][1]),
                "say": f"{name}: {rate['value']:.2f}, {rate['interval'][0]:.2f} to {rate['interval'][1]:.2f}",
            }
            for x, rate in rates
        ]
        start = [] if key == "efficacy" else [(places[0], height(1.0))]
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*start, *((dot["x"], dot["y"]) for dot in dots)])
        if dots:
            lines.append({"key": key, "name": name, "dots": dots, "through": through})
    labels = ["original", *(", ".join(view["concepts"]) for view in views)]
    shown = range(0, len(labels), max(1, (len(labels) + 8) // 9))
    return {
        "lines": lines,
        "grid": [(height(share), f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "labels": [(places[i], labels[i] if len(labels[i]) < 13 else f"{labels[i][:11]}…") for i in shown],
        "left": left,
        "right": right,
    }


def _groups(
    strips: Sequence[Strip], columns: Sequence[tuple[str, str | None]], removed_by: Mapping[str, str]
) -> list[dict[str, Any]]:
    groups = []
    for role, (name, say) in _GROUPS.items():
        views = [_strip_view(strip, columns, removed_by) for strip in strips if strip.probe.role == role]
        if views:
            groups.append({"name": name, "say": say, "strips": views})
    return groups


def _strip_view(
    strip: Strip, columns: Sequence[tuple[str, str | None]], removed_by: Mapping[str, str]
) -> dict[str, Any]:
    probe = strip.probe
    frames = []
    for (heading, upto), image, seen in zip(columns, strip.images, strip.seen, strict=True):
        good = None
        if upto is not None and probe.role == "removed" and int(upto) >= int(removed_by[probe.name]):
            good = not seen
        elif upto is not None and strip.seen[0]:  # what the original itself fails to show was not lost by a removal
            good = seen if probe.role != "removed" else None
        frames.append({"column": heading, "src": embedded(image, _LARGEST), "seen": seen, "good": good})
    return {"prompt": probe.prompt, "seed": probe.seed, "name": probe.name, "frames": frames}


def _notes(ledger: Ledger, rows: Sequence[RemovalRow]) -> list[str]:
    notes = []
    undone = [entry for entry in ledger.entries if entry.state == "undone"]
    if undone:
        names = _listed([f"{concept.target} ({entry.id})" for entry in undone for concept in entry.concepts])
        notes.append(f"{names} was removed and taken back; it counts as kept here.")
    if any(row.approximate for row in rows):
        notes.append("A trained removal was fitted on top of one that was undone: what stands is an approximation.")
    return notes


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    git = facts["git"]
    return [
        ("model", str(facts["config"]["model"])),
        ("method", str(facts["config"]["eraser"]["name"])),
        ("seed", str(facts["config"]["seed"])),
        ("device", f"{facts['device']}, threads: {facts['threads']}, {facts['platform']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
        (
            "commit",
            "not in a checkout" if git is None else git["commit"][:12] + (" with changes" if git["dirty"] else ""),
        ),
        ("time", f"{facts['seconds']:.0f} s for the last run, measuring and images included"),
        ("peak memory", f"{facts['peak_mib']:.0f} MiB"),
    ]


def _listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 8 else [*names[:7], f"{len(names) - 7} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _dated(rows: Sequence[RemovalRow]) -> str:
    return rows[-1].entry.time.replace("T", " ").replace("+00:00", " UTC") if rows else "nothing stands"
