"""Tables of the leaderboard and of the sweep behind it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .layout import Run, grouped_sources, page_of, rate_cell, read_runs, residue_cell, table

_RUNS = "leaderboard/*/*/*/run.json"
_SINGLE = ("cat", "neon", "gun", "Biscuit")
_RATES = ("held_out", "near", "far", "beside", "joint")
_HEADINGS = ("efficacy", "near", "far", "beside", "joint")
_BESIDE = "minutes"
"""Settings that were found with a larger budget than those of the ranking."""
_PROBES = ("soft-prompt", "hand-over", "relearn", "inversion", "img2img", "unlearn-diff", "quantise", "emphasis")
_LORA = ("relative_error", "mib")


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A method with its settings, on all cases that were measured.

    Attributes:
        method: Name of the eraser.
        settings: "chosen", "published" or "minutes".
        runs: Record of each case.
    """

    method: str
    settings: str
    runs: Mapping[str, Run]

    @property
    def label(self) -> str:
        """Name of the method with a link to its page; other settings than the chosen are told apart."""
        page = page_of(self.method)
        place = Path(page).relative_to("docs").as_posix() if page else ""
        linked = f"[`{self.method}`]({place})" if page else f"`{self.method}`"
        return linked if self.settings == "chosen" else f"{linked}, {self.settings}"

    @property
    def pooled_label(self) -> str:
        """Label of a row over the single concepts; it says so where some are not measured."""
        n, planned = len(self.single), len(_SINGLE)
        return self.label if n == planned else f"{self.label}, {n} of {planned} concepts"

    @property
    def is_incomplete(self) -> bool:
        """Whether some of the single concepts are not measured, so that no rank stands for all of them."""
        return len(self.single) < len(_SINGLE)

    @property
    def single(self) -> list[Run]:
        """Records of the concepts that were removed alone."""
        return [self.runs[case] for case in _SINGLE if case in self.runs]

    @property
    def merit(self) -> float:
        """Harmonic mean of held-out efficacy, near and far over the single concepts."""
        from experiments.rates import merit

        return merit([run["rates"] for run in self.single]) if self.single else 0.0

    def value(self, name: str) -> float:
        """Return a rate over the single concepts; 0 without one."""
        rate = self._rate(self.single, name)
        return 0.0 if rate is None else float(rate["value"])

    def cells(self, names: Sequence[str] = _RATES, cases: Sequence[str] = _SINGLE) -> list[str]:
        """Return rates over some cases with interval and count."""
        runs = [self.runs[case] for case in cases if case in self.runs]
        rates = [self._rate(runs, name) for name in names]
        return ["–" if rate is None else rate_cell(rate) for rate in rates]

    def mean(self, read: Callable[[Run], float]) -> str:
        """Return the mean of a number over the single concepts, with two significant digits."""
        values = [read(run) for run in self.single]
        return f"{sum(values) / len(values):.2g}" if values else "–"

    @property
    def audits(self) -> Mapping[str, Any]:
        """Result of the audit of each concept that was audited, by its name and what it was removed with."""
        return {
            concept if case == concept else f"{concept}, {shown(case)}": result
            for case, run in self.runs.items()
            if run["audit"] is not None
            for concept, result in run["audit"]["concepts"].items()
        }

    @staticmethod
    def _rate(runs: Sequence[Run], name: str) -> Mapping[str, Any] | None:
        from experiments.rates import pooled

        return pooled([run["rates"] for run in runs], name)


def shown(case: str) -> str:
    """Return the name of a case, with the concepts of it that settings were chosen on."""
    from experiments.leaderboard import CASES
    from experiments.sweep import CONCEPTS

    known = [name for name in CASES[case] if name in CONCEPTS]
    return f"{case} (has {', '.join(known)} of the choice)" if known else case


def folder(source: str, results: Path) -> Path:
    """Return the folder of the results of the model that a source names, of the default model where it names none."""
    from experiments.experiment import MODELS

    return next((results / model for model in MODELS[1:] if model in source.split()), results)


def ranked(source: str, results: Path) -> list[Entrant]:
    """Return the methods of the ranking; of a source that names the budget beside it, those of that budget."""
    everyone = entrants(folder(source, results))
    return [each for each in everyone if (each.settings == _BESIDE) == (_BESIDE in source.split())]


def entrants(results: Path) -> list[Entrant]:
    """Return the methods that were measured, the highest merit first, those with concepts to come after all others."""
    grouped: dict[tuple[str, str], dict[str, Run]] = {}
    for _, run in read_runs(_RUNS, results):
        grouped.setdefault((run["method"], run["settings"]), {})[run["case"]] = run
    everyone = [Entrant(method=method, settings=how, runs=runs) for (method, how), runs in grouped.items()]
    return sorted(everyone, key=lambda each: (each.is_incomplete, -each.merit, each.method, each.settings))


def leaderboard(source: str, results: Path) -> str:
    """Return one row a method and settings: rates over the single concepts, seconds, memory and size."""
    entered = ranked(source, results)
    rows = [
        (
            each.pooled_label,
            each.single[0]["candidate"],
            ", ".join(case for case in _SINGLE if case in each.runs),
            *each.cells(),
            each.mean(lambda run: sum(run["fit"]["cpu_seconds"])),
            each.mean(lambda run: run["seconds_per_image"]),
            each.mean(lambda run: run["fit"]["memory_mib"]),
            each.mean(lambda run: run["artefact"]["mib"]),
        )
        for each in entered
        if each.single
    ]
    headings = ("method", "settings", "concepts", *_HEADINGS, "s, fit", "s, image", "MiB, fit", "MiB, file")
    settings = {each.settings for each in entered}
    runs = [(path, run) for path, run in read_runs(_RUNS, folder(source, results)) if run["settings"] in settings]
    return table(headings, rows, ()) + (grouped_sources(runs) if rows else "")


def by_concept(source: str, results: Path) -> str:
    """Return efficacy, near and far of each method on each concept that is removed alone, as hits of images."""
    entered = [each for each in ranked(source, results) if each.single]
    rows = [(each.label, *(_hits(each.runs.get(case)) for case in _SINGLE)) for each in entered]
    return table(("method", *_SINGLE), rows, ())


def _hits(run: Run | None) -> str:
    if run is None:
        return "–"
    rates = [run["rates"][name] for name in _RATES[:3]]
    return " · ".join("–" if rate is None else f"{rate['hits']}/{rate['n']}" for rate in rates)


def kept(source: str, results: Path) -> str:
    """Return the methods by what they keep of near concepts."""
    order = sorted(
        ranked(source, results), key=lambda each: (each.is_incomplete, -each.value("near"), -each.value("held_out"))
    )
    rows = [(each.pooled_label, *each.cells(("near", "far", "held_out"))) for each in order if each.single]
    return table(("method", "near", "far", "efficacy"), rows, ())


def attacked(source: str, results: Path) -> str:
    """Return the methods by the largest residue that some probe does not exclude, over the audited concepts.

    Those without any residue come last.
    """
    from erasure.eval.protocols.audit.results import BAR

    entered = [each for each in ranked(source, results) if each.settings != "published"]
    audited = [(each, concept, audit["outside"]) for each in entered for concept, audit in each.audits.items()]
    rows = []
    for each, concept, outside in sorted(audited, key=lambda row: (not row[2], _most(row[2])[1])):
        back = [name for name, rho in outside.items() if rho["low"] > BAR]
        name, most = _most(outside)
        floors = sorted({rho["floor"] for rho in outside.values() if "floor" in rho})
        missing = [probe for probe in ("plain", *_PROBES) if probe not in outside]
        rows.append(
            (
                each.label,
                concept,
                f"{most:.2f}, {name}" if name else "–",
                ", ".join(back) or ("none" if outside else "–"),
                ", ".join(floors) or "–",
                _least_kept(outside),
                ", ".join(missing) or "none",
                *(residue_cell(outside.get(probe)) for probe in _PROBES),
            )
        )
    headings = ("method", "concept", "at most", "brought back by", "floor", "kept", "not measured", *_PROBES)
    return table(headings, rows, ())


def undone(source: str, results: Path) -> str:
    """Return the methods whose removals are undone exactly in any order, the exact ones in sequences first."""
    from erasure.erasers import eraser_class
    from erasure.runs.overview import overview

    entered = ranked(source, results)
    facts = {each.method: overview(eraser_class(each.method)) for each in entered}
    able = [each for each in entered if facts[each.method].undone == "in any order"]
    rows = [
        (
            each.pooled_label,
            "yes" if facts[each.method].exact else "no",
            facts[each.method].exports,
            *each.cells(("held_out", "near", "far")),
            *each.cells(("held_out", "near", "far"), ("eight",)),
        )
        for each in sorted(able, key=lambda each: (each.is_incomplete, not facts[each.method].exact))
    ]
    after = tuple(f"{name}, after eight" for name in _HEADINGS[:3])
    return table(("method", "exact in sequences", "exports", *_HEADINGS[:3], *after), rows, ())


def lora(source: str, results: Path) -> str:
    """Return the methods whose edit has a LoRA, by the share of the edit that it misses."""
    able = [
        (each, [run["artefact"]["lora"] for run in each.single])
        for each in ranked(source, results)
        if each.single and all(run["artefact"]["lora"] is not None for run in each.single)
    ]
    means = [(each, *(sum(one[key] for one in loras) / len(loras) for key in _LORA)) for each, loras in able]
    rows = [
        (each.pooled_label, f"{error:.3f}", f"{size:.2g}", *each.cells(("held_out", "near", "far")))
        for each, error, size in sorted(means, key=lambda row: (row[0].is_incomplete, round(row[1], 3)))
    ]
    return table(("method", "share that it misses", "MiB", *_HEADINGS[:3]), rows, ())


def cases(source: str, results: Path) -> str:
    """Return one row a method, settings and case, of one eraser or of all of a model."""
    model = folder(source, results)
    rows = [
        (
            each.label,
            shown(case),
            *each.cells(cases=(case,)),
            f"{rate_cell(run['rates']['worst'])}, {run['rates']['worst']['concept']}",
            f"{sum(run['fit']['cpu_seconds']):.2g}",
        )
        for each in entrants(model)
        if source in ("all", each.method) or model != results
        for case, run in sorted(each.runs.items())
    ]
    return table(("method", "concept", *_HEADINGS, "least efficacy", "s, fit"), rows, ())


def of_method(source: str, results: Path) -> str:
    """Return the rows of one eraser, for its own page."""
    rows = [
        (f"{each.settings}: {run['candidate']}", shown(case), *each.cells(cases=(case,)))
        for each in entrants(results)
        if each.method == source
        for case, run in sorted(each.runs.items())
    ]
    return table(("settings", "removed", *_HEADINGS), rows, ())


def sweep(source: str, results: Path) -> str:
    """Return one row a candidate of each method: its settings, its rates on the concepts for choosing, its merit."""
    rows = []
    for _, run in read_runs(source, results):
        for each in run["candidates"]:
            failed = next((fit["failed"] for fit in each["fits"] if "failed" in fit), "")
            name = f"**{each['name']}**" if each["name"] == run["chosen"] else each["name"]
            settings = ", ".join(f"{key}={value}" for key, value in each["settings"].items()) or "defaults"
            rates = ["–" if each[key] is None else rate_cell(each[key]) for key in _RATES[:3]]
            merit = "–" if failed or each["merit"] is None else f"{each['merit']:.3f}"
            seconds = "–" if each["cpu_seconds"] is None else f"{each['cpu_seconds']:.2g}"
            rows.append((f"`{run['method']}`", name, settings, *rates, merit, failed or seconds))
    headings = ("method", "candidate", "settings", *_HEADINGS[:3], "harmonic mean", "s, fit")
    return table(headings, rows, ())


def measured_rows(results: Path) -> dict[str, tuple[str, str]]:
    """Return seconds and verdict by eraser, of the chosen settings over the single concepts."""
    return {
        each.method: (
            each.mean(lambda run: sum(run["fit"]["cpu_seconds"])),
            "; ".join(
                [
                    *(f"{name} {each.value(key):.2f}" for name, key in zip(_HEADINGS, _RATES[:3], strict=False)),
                    " + ".join(case for case in _SINGLE if case in each.runs),
                ]
            ),
        )
        for each in entrants(results)
        if each.settings == "chosen" and each.single
    }


def _most(outside: Mapping[str, Any]) -> tuple[str, float]:
    """Return the probe whose interval reaches highest, and that end; "" and 0 without a residue."""
    name = max(outside, key=lambda each: outside[each]["high"], default="")
    return name, outside[name]["high"] if name else 0.0


def _least_kept(outside: Mapping[str, Any]) -> str:
    """Return the least share of what stays under a probe, with the original's and the probe; a dash for none."""
    kept = {name: rho["kept"] for name, rho in outside.items() if "erased" in rho.get("kept", {})}
    if not kept:
        return "–"
    name = min(kept, key=lambda each: kept[each]["erased"])
    return f"{kept[name]['erased']:.2f} / {kept[name]['original']:.2f}, {name}"
