"""Tables of the ablation of `absent`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .layout import Run, changes, defaults_of, read_runs, table

_PROBES = ("hand-over", "img2img", "soft-prompt", "inversion", "relearn", "quantise")


def absent(source: str, results: Path) -> str:
    """Return one row a fit and number of steps: the target, what stays, and each probe at its doses."""
    runs = read_runs(source, results)
    originals = {
        (run["concept"], *_numbers(measures)): measures
        for _, run in runs
        if "settings" not in run
        for measures in run["measures"].values()
    }
    rows = [
        _row(run, steps, measures, originals.get((run["concept"], *_numbers(measures))))
        for _, run in runs
        for steps, measures in run["measures"].items()
    ]
    headings = ("row", "concept", "steps", "images", "seen", "held out", "near", "far", *_PROBES, "CPU s")
    return table(headings, rows, ((path, run["provenance"]) for path, run in runs))


def absent_settings(source: str, results: Path) -> str:
    """Return the settings of each fit that are not the tiny world's, its anchor, and the closed form it stands on."""
    from erasure.profile import DEFAULT_MODEL, profile_of

    defaults = {**defaults_of("absent"), **profile_of(DEFAULT_MODEL).settings("absent")}
    changed = {
        run["row"]: {
            **{name: run[name] for name in ("anchor", "under") if name in run},
            **changes(run["settings"], defaults),
        }
        for _, run in read_runs(source, results)
        if "settings" in run
    }
    rows = [
        (row, "; ".join(f"{name}: {json.dumps(value)}" for name, value in values.items()) or "defaults")
        for row, values in changed.items()
    ]
    return table(("row", "settings"), rows, ())


def absent_targets(source: str, results: Path) -> str:
    """Return one row a base, odds and guidance: the images that show the concept, by the steps begun."""
    runs = read_runs(source, results)
    rows = []
    begun = sorted({row["begun"] for _, run in runs for row in run["rows"]})
    for _, run in runs:
        seen = {(row["base"], row["odds"], row["guidance_scale"], row["begun"]): row["seen"] for row in run["rows"]}
        rows += [
            (
                *(run["concept"], base, f"{run['distances'][base]:.2f}", f"{odds:g}", f"{scale:g}"),
                *(f"{seen[base, odds, scale, first]:.2f}" for first in begun),
            )
            for base, odds, scale in dict.fromkeys(key[:3] for key in seen)
        ]
    after = (f"after {first} steps of the original" for first in begun)
    return table(
        ("concept", "base", "distance", "odds", "guidance", *after),
        rows,
        ((path, run["provenance"]) for path, run in runs),
    )


def distil_reset(source: str, results: Path) -> str:
    """Return one row a reference and share of noise: the cost until what stays is back, and the half-life."""
    runs = read_runs(source, results)
    doses = list(dict.fromkeys(dose for _, run in runs for dose in run["references"]["original"]["relearn"]))
    rows = [row for _, run in runs for row in _reset_rows(run, doses)]
    headings = ("concept", "start", "steps", "CPU s", "seen", "kept", *(f"after {dose}" for dose in doses), "half-life")
    return table(headings, rows, ((path, run["provenance"]) for path, run in runs))


def _reset_rows(run: Run, doses: Sequence[str]) -> list[tuple[str, ...]]:
    rows = [(run["concept"], name, "–", "–", each["plain"], each) for name, each in run["references"].items()]
    for each in run["points"]:
        steps = f"{each['steps']}{'' if each['back'] else ', not back'}"
        measures = each["stops"][str(each["steps"])]
        rows.append((run["concept"], f"{each['share']:g} noise", steps, f"{each['cpu_seconds']:,.0f}", measures, each))
    return [
        (
            *first,
            f"{measures['seen']:.2f}",
            f"{_mean([*measures['near'], *measures['far']]):.2f}",
            *(f"{each['relearn'][dose]:.2f}" for dose in doses),
            f"> {doses[-1]}" if each["half_life"] is None else f"{each['half_life']:.0f}",
        )
        for *first, measures, each in rows
    ]


def _numbers(measures: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of near and of far images."""
    return len(measures["near"]), len(measures["far"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _row(run: Run, steps: str, measures: Mapping[str, Any], original: Mapping[str, Any] | None) -> tuple[str, ...]:
    return (
        run["row"],
        run["concept"],
        steps if "settings" in run else "–",
        str(run["images"]),
        f"{measures['seen']:.2f}",
        f"{measures['seen_held_out']:.2f}",
        *(_retention(measures[tier], None if original is None else original[tier]) for tier in ("near", "far")),
        *(_doses(measures.get(name)) for name in _PROBES),
        f"{run['curve']['cpu_seconds']:,.0f}" if "curve" in run and steps == str(run["settings"]["steps"]) else "–",
    )


def _retention(shown: Sequence[int], before: Sequence[int] | None) -> str:
    """Return the images of what the original shows that still show it, and those of the original: "26/28".

    A dash where the original is not measured: what it does not draw cannot be kept.
    """
    if before is None:
        return "–"
    kept = [after for after, sees in zip(shown, before, strict=True) if sees]
    return f"{sum(kept)}/{len(kept)}" if kept else "–"


def _doses(rates: Mapping[str, float] | None) -> str:
    return "–" if rates is None else " ".join(f"{rate:.2f}" for rate in rates.values())
