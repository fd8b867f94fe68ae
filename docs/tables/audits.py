"""Tables of the audits of methods: what each probe finds, which probes agree, which are left over, and what fails."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .layout import NOTHING, Run, grouped_sources, read_runs, residue_cell, table

_RUNS = "audit/*/*/run.json"
_CASES = ("cat", "neon", "gun", "weapons")
LEAST_ROWS = 8
"""Smallest number of rows that two probes are compared over."""
REDUNDANT = 0.9
"""Rank correlation above which two probes with equal verdicts are redundant."""
Probes = Mapping[str, Run]


@dataclass(frozen=True, kw_only=True)
class AuditedConcept:
    """Audit of one removed concept.

    Attributes:
        method: Name of the method.
        case: Removal, of one concept or of a family.
        concept: Name of the concept.
        audit: Its record.
    """

    method: str
    case: str
    concept: str
    audit: Run

    @property
    def label(self) -> str:
        """Name of the concept, with the removal that it was a part of."""
        return self.concept if self.concept == self.case else f"{self.concept}, of {self.case}"

    @property
    def probes(self) -> Probes:
        """Record of each probe."""
        return self.audit["probes"]

    def measured(self, *, inside: bool | None = None) -> Probes:
        """Return the probes with a residue, of those that look inside or of the others; None returns all."""
        return {
            name: probe
            for name, probe in self.probes.items()
            if probe["strongest"] is not None and inside in (None, probe["access"] == "inside")
        }


def audited_concepts(results: Path) -> list[AuditedConcept]:
    """Return every audited concept, in the order of the removals."""
    audits = [
        AuditedConcept(method=run["method"], case=run["case"], concept=concept, audit=audit)
        for _, run in read_runs(_RUNS, results)
        for concept, audit in run["concepts"].items()
    ]
    order = {case: i for i, case in enumerate(_CASES)}
    return sorted(audits, key=lambda each: order.get(each.case, len(order)))


def residues(source: str, results: Path) -> str:
    """Return one row a probe, one column a method: the strongest residue after one removal, and what is kept there."""
    audits = [each for each in audited_concepts(results) if each.case == source]
    methods = list(dict.fromkeys(each.method for each in audits))
    labels = list(dict.fromkeys(each.label for each in audits))
    rows = []
    for label in labels:
        audited = {each.method: each.probes for each in audits if each.label == label}
        for name in _names(audited.values()):
            read = {method: probes[name] for method, probes in audited.items() if name in probes}
            row = [name, _floors(read.values()), *(_cell(read.get(method)) for method in methods)]
            rows.append([label, *row] if len(labels) > 1 else row)
    headings = ["probe", "floor", *(f"`{method}`" for method in methods)]
    sources = _sources(results, source) if rows else ""
    return table(["concept", *headings] if len(labels) > 1 else headings, rows, ()) + sources


def alike(source: str, results: Path) -> str:
    """Return the rank correlations of the probes over all methods and concepts, each with its number of rows."""
    series = _series(audited_concepts(results))
    compared = {pair: _correlation(*(series[name] for name in pair)) for pair in itertools.combinations(series, 2)}
    with_any = [name for name in series if any(name in pair and rho is not None for pair, (rho, _) in compared.items())]
    rows = [
        (
            with_any[i],
            *(_correlation_cell(*compared[other, with_any[i]]) for other in with_any[:i]),
            *[""] * (len(with_any) - 1 - i),
        )
        for i in range(1, len(with_any))
    ]
    return table(("probe", *with_any[:-1]), rows, ())


def redundant(source: str, results: Path) -> str:
    """Return the pairs of probes that rank the methods alike and decide alike on every row."""
    audits = audited_concepts(results)
    series, finds = _series(audits), _series(audits, "finds")
    rows, compared = [], False
    for one, other in itertools.combinations(series, 2):
        rho, n = _correlation(series[one], series[other])
        compared |= rho is not None
        shared = [key for key in series[one] if key in series[other]]
        if rho is not None and rho > REDUNDANT and all(finds[one][key] == finds[other][key] for key in shared):
            both = sum(finds[one][key] for key in shared)
            costs = (_cost(audits, probe) for probe in (one, other))
            rows.append((one, other, f"{rho:.2f}", str(n), f"{both:.0f}", *costs))
    headings = (
        *("one", "other", f"correlation, > {REDUNDANT:g}", f"rows, >= {LEAST_ROWS}", "of which both find it in"),
        *("seconds, one", "seconds, other"),
    )
    if compared and not rows:
        return "No two probes are redundant by this rule.\n"
    return table(headings, rows, ())


def failures(source: str, results: Path) -> str:
    """Return a sentence for each method and concept: by which probes it fails, and by which it does not."""
    return "".join(f"- `{each.method}`, {each.label}: {_sentence(each)}.\n" for each in _by_method(results)) or NOTHING


def speeds(source: str, results: Path) -> str:
    """Return one row a method and concept, one column a training: updates until half is back, and the speed ratio."""
    audits = _by_method(results)
    parts = list(dict.fromkeys((name, part) for each in audits for name, part in _trainings(each.probes)))
    rows = [
        (f"`{each.method}`", each.label, *(_speed_cell(each.probes.get(name), part) for name, part in parts))
        for each in audits
        if _trainings(each.probes)
    ]
    return table(("method", "concept", *(", ".join(filter(None, pair)) for pair in parts)), rows, ())


def planted(source: str, results: Path) -> str:
    """Return one row a planted model: the probes that must find it, those that did not, and the false ones."""
    runs = read_runs(source, results)
    rows = [
        (
            name,
            each["about"],
            ", ".join(each["must"]) or "–",
            ", ".join(each["missed"]) or "none",
            "; ".join(f"{probe}: {why}" for probe, why in each["silent"].items() if probe in each["must"]) or "none",
            ", ".join(each["false"]) or "none",
            ", ".join(probe for probe, zero in each["second gold at 0"].items() if not zero) or none,
        )
        for _, run in runs
        for name, each in run["planted"].items()
        for none in ["none" if each["second gold at 0"] else "–"]  # without a second gold
    ]
    headings = (
        "planted",
        "fault",
        "must be found by",
        "missed by",
        "not measured",
        "found wrongly by",
        "second gold off",
    )
    return table(headings, rows, runs)


def planted_probes(source: str, results: Path) -> str:
    """Return one row a probe, one column a planted model: its strongest residue, bold where that finds the fault."""
    runs = read_runs(source, results)
    models = {name: each for _, run in runs for name, each in run["planted"].items()}
    probes = dict.fromkeys(
        probe for each in models.values() for probe in ("kept", *each["residues"], *each["side effects"], *each["must"])
    )
    rows = [(probe, *(_planted_cell(probe, each) for each in models.values())) for probe in probes]
    return table(("probe", *models), rows, ())


def _names(records: Iterable[Probes]) -> list[str]:
    return list(dict.fromkeys(name for probes in records for name in probes))


def _by_method(results: Path) -> list[AuditedConcept]:
    return sorted(audited_concepts(results), key=lambda each: each.method)


def _sources(results: Path, case: str) -> str:
    return grouped_sources((path, run) for path, run in read_runs(_RUNS, results) if run["case"] == case)


def _floors(read: Iterable[Run]) -> str:
    """Return the kinds of floor of a probe's strongest readings; a side effect is read beside the original."""
    floors = {}
    for probe in read:
        if probe["strongest"] is not None:
            floors[probe["strongest"]["floor"]] = True
        elif probe["side_effect"] is not None:
            floors["original"] = True
    return ", ".join(floors) or "–"


def _cell(probe: Run | None) -> str:
    """Return residue and kept share of a probe, bold where it finds the concept; or why there is none."""
    if probe is None:
        return "–"
    if probe["status"] != "measured":
        return f"not measured: {probe['reason']}"
    reading, effect = probe["strongest"], probe["side_effect"]
    if reading is None:
        return "no contrast" if effect is None else _difference(effect)
    rho = residue_cell(reading["residue"])
    mine, original = (reading["rows"][row]["kept"] for row in ("erased", "original"))
    kept = "" if mine is None else f", kept {mine:.2f} / {original:.2f}"
    return (f"**{rho}**" if probe["finds"] else rho) + kept


def _difference(effect: Run) -> str:
    difference = effect["difference"]
    cell = f"{difference['value']:+.2f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
    return f"**{cell}**" if difference["low"] > 0 else cell


Key = tuple[str, str, str]


def _series(audits: Sequence[AuditedConcept], name: str = "value") -> dict[str, dict[Key, float]]:
    """Return a number of each probe with a residue by method and concept: its size, or whether it finds the concept."""
    series: dict[str, dict[Key, float]] = {}
    for each in audits:
        for probe, record in each.measured().items():
            value = record["strongest"]["residue"]["value"]
            size = abs(value) if record["access"] == "inside" else value
            key = (each.method, each.case, each.concept)
            series.setdefault(probe, {})[key] = size if name == "value" else float(record["finds"])
    return series


def _correlation(one: Mapping[Key, float], other: Mapping[Key, float]) -> tuple[float | None, int]:
    """Return Spearman's rank correlation over the rows that two probes share, and their number.

    There is none over too few rows, or where a probe has one value for all.
    """
    shared = [key for key in one if key in other]
    values = [[series[key] for key in shared] for series in (one, other)]
    if len(shared) < LEAST_ROWS or any(len(set(row)) == 1 for row in values):
        return None, len(shared)
    import torch
    from torchmetrics.functional import spearman_corrcoef

    return float(spearman_corrcoef(*(torch.tensor(row, dtype=torch.float64) for row in values))), len(shared)


def _correlation_cell(rho: float | None, n: int) -> str:
    return "–" if rho is None else f"{rho:.2f} of {n}"


def _cost(audits: Sequence[AuditedConcept], probe: str) -> str:
    """Return the mean of the seconds that a probe takes on an erased model."""
    seconds = [each.probes[probe]["seconds"].get("erased") for each in audits if probe in each.probes]
    known = [each for each in seconds if each is not None]
    return f"{sum(known) / len(known):.0f}" if known else "–"


def _sentence(each: AuditedConcept) -> str:
    outside = each.measured(inside=False)
    parts = [_brought_back(outside)]
    if held := [name for name, probe in outside.items() if not probe["finds"]]:
        parts.append(f"not by {_listed(held)}")
    if inside := [name for name, probe in each.measured(inside=True).items() if probe["finds"]]:
        parts.append(f"inside, {_listed(inside)} still tell{'s' if len(inside) == 1 else ''} it apart")
    effects = {name: probe["side_effect"] for name, probe in each.probes.items() if probe["side_effect"] is not None}
    if up := [f"{name} ({_plus(effect)})" for name, effect in effects.items() if effect["difference"]["low"] > 0]:
        parts.append(f"side effects: {_listed(up)}")
    if unread := [name for name, probe in each.probes.items() if probe["status"] != "measured"]:
        parts.append(f"not measured: {_listed(unread)}")
    if kept := each.audit["kept"]:
        others = ", ".join(f"{row} {share:.2f}" for row, share in kept.items() if row != "erased")
        parts.append(f"{kept['erased']:.2f} of what should stay is drawn ({others})")
    return "; ".join(parts)


def _brought_back(outside: Probes) -> str:
    """Return the probes that bring a concept back, the strongest first, with residue and dose."""
    back = {name: probe["strongest"] for name, probe in outside.items() if probe["finds"]}
    if back:
        order = sorted(back, key=lambda name: -back[name]["residue"]["value"])
        return "brought back by " + _listed(
            [f"{name} ({back[name]['residue']['value']:.2f}, {_place(back[name])})" for name in order]
        )
    most = {name: probe["most"] for name, probe in outside.items()}
    if not most:
        return "no probe told the original from its floor"
    name = max(most, key=lambda each: most[each])
    return f"brought back by none, with at most {most[name]:.2f} ({name}) not excluded"


def _place(reading: Run) -> str:
    return ", ".join(filter(None, (reading["part"], reading["label"])))


def _plus(effect: Run) -> str:
    return f"{effect['difference']['value']:+.2f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _trainings(probes: Probes) -> list[tuple[str, str]]:
    """Return probe and part of each training that brought half of the original's rate back in some model."""
    return [(name, part) for name, probe in probes.items() if probe["effort"] for part in probe["half_doses"]]


def _speed_cell(probe: Run | None, part: str) -> str:
    """Return the updates after which half of the original's rate is back, and the ratio to each floor's number."""
    if probe is None or part not in probe["half_doses"]:
        return "–"
    halves, weakest = probe["half_doses"][part], probe["doses"][0]
    mine = halves["erased"]
    if mine is None:
        return f"> {probe['doses'][-1]:g}"
    ratios = probe["speed_ratios"].get(part, {})
    said = [_ratio(ratio, mine, halves[row], weakest, row) for row, ratio in ratios.items()]
    return "; ".join([f"{'<= ' if mine == weakest else ''}{mine:.3g}", *said])


def _ratio(ratio: float, mine: float, other: float | None, weakest: float, row: str) -> str:
    """Return a speed ratio; half-doses outside of the doses bound it alone."""
    if mine == other == weakest:
        return f"not told from {row}"
    bound = "<= " if other == weakest else ">= " if mine == weakest or other is None else ""
    return f"{bound}{ratio:.2g} x {row}"


def _planted_cell(probe: str, model: Mapping[str, Any]) -> str:
    """Return the strongest residue of a probe on a planted model, its side effect, or what is kept beside a floor."""
    if probe == "kept" and model["kept"]:
        cell = "{:.2f} / {:.2f}".format(*model["kept"])
    elif probe in model["residues"]:
        cell = residue_cell(model["residues"][probe])
    elif probe in model["side effects"]:
        cell = "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**model["side effects"][probe])
    else:
        cell = "–"
    marked = f"**{cell}**" if probe in model["found"] else cell
    return f"{marked}, must" if probe in model["must"] else marked
