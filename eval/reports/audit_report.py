"""The page of an audit: a ladder of probes by access level."""

from pathlib import Path
from typing import Any

from rich.table import Table

from erasure.io.files import write_whole

from ..protocols.audit.results import BAR, ConceptAudit, DoseReading, ProbeResult
from ..protocols.audit.rows import ERASED, GOLD, ORIGINAL
from ..protocols.audit.run import AuditResults
from ..stats.residue import Residue
from .page import filled

LEVELS = {
    "prompt": "a user who writes prompts",
    "sampler": "a user who drives the sampler",
    "image": "a user with an image of the concept",
    "gradient": "an owner of the weights who searches",
    "weights": "an owner who changes the weights",
    "inside": "a look inside: no attack",
}
"""Access levels, from the least to the most, in words."""
_LENGTH = 430  # of a bar, in units of its drawing
_LEFT, _WIDTH = 60.0, 300.0  # of the axis from residue 0 to 1 in it
_LEAST, _MOST = -0.2, 1.2


def terminal_table(audit: ConceptAudit) -> Table:
    """Return a line a probe: its strongest dose, the residue with its interval, the rows' values, and what is kept."""
    rows = list(dict.fromkeys(row for result in audit.probes.values() for row in result.outcomes))
    table = Table("probe", "access", "dose", "residue", *rows, "kept", box=None, pad_edge=False, title=audit.concept)
    for result in audit.probes.values():
        reading = shown(result)
        if reading is None:
            table.add_row(result.name, result.access, "not measured", *[""] * (len(rows) + 2))
            continue
        values = [_number(reading.mean(row)) for row in rows]
        table.add_row(
            result.name,
            result.access,
            _dose(reading),
            _number_read(reading),
            *values,
            _number(reading.kept(ERASED)),
        )
    return table


def shown(result: ProbeResult) -> DoseReading | None:
    """Return the reading that stands for a probe: the strongest, else a side effect or the last; None without any."""
    return result.strongest or result.side_effect or next(reversed(result.readings), None)


def write_audit_report(results: AuditResults, folder: Path) -> Path:
    """Write `report.html` and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = folder / "report.html"
    write_whole(path, render(results).encode())
    return path


def render(results: AuditResults) -> str:
    """Return the page; it needs no network."""
    audit = results.audit
    return filled(
        "audit",
        title=f"Audit of {audit.title}",
        judge="no judge" if audit.judge is None else audit.judge.name,
        suite=audit.suite,
        scale={"zero": round(100 * _across(0.0) / _LENGTH, 2), "one": round(100 * _across(1.0) / _LENGTH, 2)},
        rows={row.name: row.variant.about for row in audit.rows},
        concepts=[_concept(each) for each in results.concepts],
        versions=", ".join(f"{name} {version}" for name, version in results.origin["versions"].items()),
        device=results.origin["device"],
    )


def _concept(audit: ConceptAudit) -> dict[str, Any]:
    levels = [
        {"title": title, "rungs": [_rung(result) for result in audit.probes.values() if result.access == level]}
        for level, title in LEVELS.items()
    ]
    return {
        "name": audit.concept,
        "verdict": audit.verdict,
        "gold": audit.gold,
        "untested": audit.untested,
        "levels": [level for level in levels if level["rungs"]],
    }


def _rung(result: ProbeResult) -> dict[str, Any]:
    reading = shown(result)
    return {
        "name": result.name,
        "about": result.about,
        "reason": result.reason,
        "status": result.status,
        "dose": "" if reading is None else _dose(reading),
        "bar": None
        if reading is None or reading.residue is None
        else _bar(reading, reading.residue, inside=result.access == "inside"),
        "residue": "" if reading is None else _number_read(reading),
        "side_effect": reading is not None and reading.judged.side_effect,
        "kept": _number(None if reading is None else reading.kept(ERASED)),
        "kept_gold": _number(None if reading is None else reading.kept(GOLD if GOLD in reading.rows else ORIGINAL)),
        "rows": list(result.outcomes),
        "readings": [_detail(each, result) for each in result.readings],
        "images": [] if reading is None else _images(reading),
        "halves": _halves(result),
    }


def _detail(reading: DoseReading, result: ProbeResult) -> dict[str, Any]:
    return {
        "dose": _dose(reading),
        "residue": _number_read(reading),
        "means": [_number(reading.mean(row)) for row in result.outcomes],
        "kept": _number(reading.kept(ERASED)),
        "floor": reading.floor,
    }


def _bar(reading: DoseReading, residue: Residue, *, inside: bool) -> dict[str, Any]:
    ticks = [
        {"x": _across(rho.value), "name": f"{row}: {_residue(rho)}"}
        for row in reading.rows
        if row not in (ERASED, ORIGINAL) and (rho := reading.residue_of(row)) is not None
    ]
    return {
        "zero": _across(0.0),
        "one": _across(1.0),
        "start": min(_across(0.0), _across(residue.value)),
        "width": abs(_across(residue.value) - _across(0.0)),
        "low": _across(residue.low),
        "high": _across(residue.high),
        "ticks": ticks,
        "beyond": _beyond(residue.value),
        "state": _state(residue, inside=inside),
    }


def _beyond(residue: float) -> str:
    """Return the corners of an arrow at the end of the axis for a residue beyond it; "" within it."""
    if _LEAST <= residue <= _MOST:
        return ""
    tip = _across(residue)
    foot = tip + (9 if residue < _LEAST else -9)
    return f"{tip:g},17 {foot:g},10 {foot:g},24"


def _state(residue: Residue, *, inside: bool) -> str:
    """Return the colour of a bar: back, open (the images are too few to tell, or a trace inside), or gone."""
    if inside:
        return "open" if residue.value > BAR or residue.high < -BAR else "zero"
    if residue.low > BAR:
        return "bad"
    return "open" if residue.value > BAR else "zero"


def _images(reading: DoseReading) -> list[dict[str, Any]]:
    return [
        {
            "row": row,
            "prompt": image["prompt"],
            "src": f"data:image/png;base64,{image['png']}",
            "shows": image["shows"],
        }
        for row, judged in reading.rows.items()
        for image in judged.images[: 3 if row == ERASED else 1]
    ]


def _halves(result: ProbeResult) -> list[str]:
    lines = []
    ratios = result.speed_ratios()
    for part, rows in result.half_doses().items():
        doses = [reading.judged.dose for reading in result.of_part(part)]
        said = ", ".join(f"{row} {_half(dose, doses)}" for row, dose in rows.items())
        lines.append(f"{part + ': ' if part else ''}half of the original's rate is back at {said} ({result.unit})")
        if part in ratios:
            speeds = [_speed(ratio, rows[ERASED], rows[row], doses[0], row) for row, ratio in ratios[part].items()]
            lines.append(f"{part + ': ' if part else ''}learned {', '.join(speeds)}; 1 is no residue")
    return lines


def _half(half: float | None, doses: list[float]) -> str:
    """Return a half-dose in words: beyond the strongest dose, at or before the weakest, or between."""
    rising = doses[-1] > doses[0]
    if half is None:
        return f"{'>' if rising else '<'} {doses[-1]:g}"
    return f"{'≤' if rising else '≥'} {half:g}" if half == doses[0] else f"{half:.3g}"


def _speed(ratio: float, mine: float | None, other: float | None, weakest: float, row: str) -> str:
    """Return a speed ratio in words; a half-dose outside of the doses bounds it alone."""
    if mine == other == weakest:
        return f"no slower than {row}, which these doses do not tell from it"
    bound = "at most " if other == weakest else "at least " if mine == weakest or other is None else ""
    return f"{bound}{ratio:.2g} times as fast as {row}"


def _dose(reading: DoseReading) -> str:
    judged = reading.judged
    return f"{judged.part}, {judged.label}" if judged.part else judged.label


def _residue(value: Residue | None) -> str:
    return "no contrast" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _number_read(reading: DoseReading) -> str:
    """Return the residue of a reading, or the difference of a side effect, with its interval."""
    side = reading.difference
    return _residue(reading.residue) if side is None else f"{side.value:+.2f} [{side.low:+.2f}, {side.high:+.2f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _across(residue: float) -> float:
    return round(_LEFT + _WIDTH * min(max(residue, _LEAST), _MOST), 1)
