"""The last audit of what stands, for a model card: its verdicts, a table of probes, and what was not tested."""

from collections.abc import Iterator, Mapping
from typing import Any, NotRequired

from typing_extensions import TypedDict

from erasure.io.json_files import record_if_whole
from erasure.io.text import in_markdown
from erasure.ledger import Ledger

from ..protocols.audit.rows import ERASED, ORIGINAL


class _Interval(TypedDict):
    value: float
    low: float
    high: float


class _RowRecord(TypedDict):
    mean: float | None
    kept: float | None


class _Reading(TypedDict):
    part: str
    label: str
    residue: _Interval | None
    difference: NotRequired[_Interval | None]
    rows: Mapping[str, _RowRecord]


class _Probe(TypedDict):
    access: str
    status: str
    reason: str
    readings: list[_Reading]
    strongest: int | None


class _Concept(TypedDict):
    concept: str
    gold: str
    verdict: str
    untested: list[str]
    probes: Mapping[str, _Probe]


class AuditRecord(TypedDict):
    """Keys of an audit's record that a card shows."""

    suite: str
    judge: str | None
    time: NotRequired[str]
    concepts: list[_Concept]


def last_audit(ledger: Ledger) -> dict[str, Any] | None:
    """Return the record of the last audit of what stands now, in the ledger's folder; None without one.

    One of more probes comes before a later one of fewer: it is of the same models.
    """
    records = [
        record_if_whole(path, AuditRecord) for path in (ledger.path / "audits").glob(f"*-{ledger.state()}/audit.json")
    ]
    return max((record for record in records if record is not None), key=_width_and_time, default=None)


def _width_and_time(record: Mapping[str, Any]) -> tuple[int, str]:
    measured = [p for concept in record["concepts"] for p in concept["probes"].values() if p["status"] == "measured"]
    return len(measured), str(record.get("time", ""))


def audit_section(ledger: Ledger) -> str:
    """Return the section of a card; without an audit it says so, and how to make one."""
    record = last_audit(ledger)
    if record is None:
        return (
            "## Audit\n\nNone was made of what stands: whether the concept can be brought back, and by what access to"
            " the model, was not tested. `erasure audit LEDGER` does."
        )
    judge = "no judge" if record["judge"] is None else in_markdown(record["judge"])
    when = f", {in_markdown(str(record['time']))}" if record.get("time") else ""
    about = (
        f"`erasure audit`, suite {in_markdown(record['suite'])}, {judge}{when}. The residue is 0 for a model never"
        " taught the concept (or its stand-in) and 1 for the original, under the same probe at its strongest dose;"
        " brackets hold 95 %. *Kept* is the share of what should stay that is drawn under the same dose."
    )
    lines = ["## Audit", "", about]
    for concept in record["concepts"]:
        lines += [
            "",
            f"**{in_markdown(concept['concept'])}.** {in_markdown(concept['verdict'])}",
            "",
            "| probe | access | dose | residue | this model | original | kept |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *_rows(concept["probes"]),
            "",
            f"Not tested: {', '.join(map(in_markdown, concept['untested'])) or 'nothing; every probe was run'}.",
        ]
    return "\n".join(lines)


def _rows(probes: Mapping[str, _Probe]) -> Iterator[str]:
    for name, probe in probes.items():
        reading = _shown(probe)
        if reading is None:
            why = probe["reason"] or "no reading"
            yield f"| {in_markdown(name)} | {in_markdown(probe['access'])} | not measured: {in_markdown(why)} | | | | |"
            continue
        dose = ", ".join(filter(None, (reading["part"], reading["label"])))
        cells = (
            name,
            probe["access"],
            dose,
            _number(reading),
            *(_rate(reading["rows"].get(row), "mean") for row in (ERASED, ORIGINAL)),
            _rate(reading["rows"].get(ERASED), "kept"),
        )
        yield f"| {' | '.join(map(in_markdown, cells))} |"


def _shown(probe: _Probe) -> _Reading | None:
    """Return the reading at the strongest dose, else the last; None without any."""
    readings, strongest = probe["readings"], probe["strongest"]
    if not readings:
        return None
    return readings[strongest] if strongest is not None and 0 <= strongest < len(readings) else readings[-1]


def _number(reading: _Reading) -> str:
    if side := reading.get("difference"):
        return f"{side['value']:+.2f} [{side['low']:+.2f}, {side['high']:+.2f}], a side effect"
    residue = reading["residue"]
    if residue is None:
        return "no contrast"
    return f"{residue['value']:.2f} [{residue['low']:.2f}, {residue['high']:.2f}]"


def _rate(row: _RowRecord | None, key: str) -> str:
    value = None if row is None else row.get(key)
    return "–" if value is None else f"{value:.2f}"
