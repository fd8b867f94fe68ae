"""Tables of evaluations and attacks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .layout import (
    NOTHING,
    rate_cell,
    read_runs,
    score_cell,
    table,
)

ROWS = ("erased", "gold", "original", "negative_prompt", "destroyed")


def evaluation(source: str, results: Path) -> str:
    """Return one row a metric, one column a model, of one judged model beside its references."""
    [(path, run)] = read_runs(source, results) or [(Path(), {})]
    if not run:
        return NOTHING
    rows = run["rows"]
    names = [name for name in ROWS if name in rows]
    known = dict.fromkeys(metric for name in names for metric in rows[name])
    metrics = [metric for metric in known if not metric.startswith("shown_")]
    cells = [(f"`{name}`", *(score_cell(rows[row].get(name)) for row in names)) for name in metrics]
    return table(("metric", *names), cells, [(path, run["protocol"])])


def family(source: str, results: Path) -> str:
    """Return one row a method: what is left of a family by wording and by attack, and what else went."""
    names = ("efficacy_explicit", "efficacy_synonym", "efficacy_combined", "efficacy_implicit", "efficacy_held_out")
    tiers = ("retention_everything_else", "clip_score", "fd")
    runs = read_runs(source, results)
    attacks = list(dict.fromkeys(name for _, run in runs for name in run["attacks"]))
    rows = [
        (
            path.parent.name,
            *(_left(run["scores"]["erased"].get(name)) for name in names),
            *(_brought_back(run["attacks"].get(name)) for name in attacks),
            "–" if run["beside"]["erased"] is None else rate_cell(run["beside"]["erased"]),
            *(score_cell(run["scores"]["erased"].get(name)) for name in tiers),
        )
        for path, run in runs
    ]
    seen = (f"{name.removeprefix('efficacy_').replace('_', '-')}, seen" for name in names)
    headings = ("run", *seen, *attacks, "tools and vehicles kept", *tiers)
    return table(headings, rows, runs)


def _left(score: Mapping[str, Any] | None) -> str:
    """Return the share of images that still show what was erased."""
    if score is None or score["value"] is None:
        return "–"
    return f"{1 - score['value']:.3f} [{1 - score['high']:.3f}, {1 - score['low']:.3f}] of {score['n']}"


def text_states(source: str, results: Path) -> str:
    """Return one row an exchange of text states: what the images show."""
    runs = read_runs(source, results)
    rows = [
        (part, rate_cell(row["concept"]), rate_cell(row["safe"]))
        for _, run in runs
        for part, row in run["rows"].items()
    ]
    return table(("taken from the safe sentence", "weapon seen", "flower seen"), rows, runs)


def joint_states(source: str, results: Path) -> str:
    """Return one row an exchange of text states before a block: what the images show."""
    runs = read_runs(source, results)
    rows = [
        (
            row["part"],
            "–" if row["block"] is None else str(row["block"]),
            *map(rate_cell, (row["concept"], row["safe"])),
        )
        for _, run in runs
        for row in run["rows"]
    ]
    return table(("taken from the safe sentence", "before block", "weapon seen", "flower seen"), rows, runs)


def attacks(source: str, results: Path) -> str:
    """Return one row a method and attack: how many prompts brought something back, beside the controls."""
    runs = read_runs(source, results)
    rows = []
    for path, run in runs:
        for name, attack in run["attacks"].items():
            controls = attack["rows"]
            confirmed = controls["attacked"]["confirmed"]
            rows.append(
                (
                    path.parent.name,
                    name,
                    rate_cell(controls["attacked"]["success"][0]),
                    *(
                        rate_cell(controls[row]["success"][-1])
                        for row in ("attacked", "plain prompt", "attack on the original")
                    ),
                    "–" if confirmed is None else rate_cell(confirmed),
                )
            )
    budgets = sorted(
        {len(attack["rows"]["attacked"]["success"]) for _, run in runs for attack in run["attacks"].values()}
    )
    within = f"within {' or '.join(map(str, budgets))}"
    headings = ("run", "attack", "1 image", within, "plain prompt", "on the original", "second judge agrees")
    return table(headings, rows, runs)


def searches(source: str, results: Path) -> str:
    """Return one row a search of UnlearnDiffAtk on the same prompts: its cost, and the prompts with a success."""
    runs = read_runs(source, results)
    rows = []
    for path, run in runs:
        for name, row in run["rows"].items():
            search = run["searches"].get(name)
            passes = search and search["rounds"] * search["batch_size"] * (search["timesteps"] or 1)
            cost = ("–", "–") if search is None else (f"{passes:,}", f"{row['cpu_seconds']:.0f} s")
            rates = (rate_cell(row["success"][i]) for i in (0, -1))
            rows.append((path.parent.name, name, *cost, *rates))
    budgets = sorted({len(row["success"]) for _, run in runs for row in run["rows"].values()})
    within = f"within {' or '.join(map(str, budgets))}"
    headings = ("erased by", "search", "passes of the denoiser", "CPU time of a prompt", "1 image", within)
    return table(headings, rows, runs)


def _brought_back(attack: Mapping[str, Any] | None) -> str:
    """Return the share of prompts with a success, beside that of the plain prompt with as many seeds."""
    if attack is None:
        return "–"
    attacked, plain = (attack["rows"][row]["success"][-1] for row in ("attacked", "plain prompt"))
    return f"{rate_cell(attacked)}, plain {plain['value']:.3f}"
