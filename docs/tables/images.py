"""Tables of experiments on images: several concepts in one prompt, and instances learned and removed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .layout import (
    rate_cell,
    read_runs,
    score_cell,
    table,
)


def several_concepts(source: str, results: Path) -> str:
    """Return one row an arm: how often both objects are drawn, and how well the images fit and look."""
    rows = [
        (
            name,
            rate_cell(arm["both"]),
            rate_cell(arm["both_never_seen_together"]) if arm["both_never_seen_together"] else "",
            f"{arm['frechet_distance']['value']:.4f}",
            *(f"{arm[key]['value']:.2f}" for key in ("clip_score", "clip_minimum", "caption_match")),
        )
        for _, run in read_runs(source, results)
        for name, arm in run["arms"].items()
    ]
    headings = (
        "sampling", "both objects", "of pairs never drawn together", "FD to drawings", "CLIP score", "lesser object",
        "caption match",
    )  # fmt: skip
    return table(headings, rows, read_runs(source, results))


def several_concepts_maps(source: str, results: Path) -> str:
    """Return one row an arm: what its maps do after a quarter of the steps and at the end."""
    rows = []
    for _, run in read_runs(source, results):
        for name, arm in run["arms"].items():
            maps = [arm["maps"][key] for key in ("overlap", "kept")]
            rows.append((name, *(f"{values[i]:.3f}" for values in maps for i in (len(values) // 4, -1))))
    headings = ("sampling", "overlap after a quarter", "at the end", "kept after a quarter", "at the end")
    return table(headings, rows, read_runs(source, results))


def several_concepts_tests(source: str, results: Path) -> str:
    """Return one row a comparison of A-STAR with another arm: images that show both objects in one of them only."""
    rows = [
        (pair, f"{test['gained']}", f"{test['lost']}", f"{test['p_value']:.2g}")
        for _, run in read_runs(source, results)
        for pair, test in run["mcnemar"].items()
        if pair.startswith("A-STAR") or pair.endswith("against plain")
    ]
    return table(("comparison", "both in the first alone", "in the second alone", "p (McNemar)"), rows, ())


def localised(source: str, results: Path) -> str:
    """Return one row a way to remove one of two objects: what goes, what stays, and how far the rest moves."""
    rows = []
    for _, run in read_runs(source, results):
        negative = run["arms"]["a negative prompt"]
        for name, arm in run["arms"].items():
            ratios = [
                f"{arm[key]:.4g} ({arm[key] / negative[key]:.2f})"
                for key in ("pixels_outside", "oracle_distance_outside")
            ]
            rows.append((name, rate_cell(arm["gone"]), rate_cell(arm["other_kept"]), *ratios))
    headings = ("sampling", "object gone", "other object kept", "pixels outside", "oracle distance outside")
    return table(headings, rows, read_runs(source, results))


def instances_learned(source: str, results: Path) -> str:
    """Return one row a state of a model that learns an individual: likeness, composition, and what stays."""
    runs = read_runs(source, results)
    rows = [
        (
            state if len(fits) == 1 else f"{state}, seed {fit['seed']}",
            *(rate_cell(fit["individual"][group]["recognised"]) for group in ("alone", "class")),
            *(score_cell(fit["individual"][group]["identity"]) for group in ("alone", "composed")),
            rate_cell(fit["composed"]),
            score_cell(fit["fits"]["caption_match"]["whole"]),
            *(_kept_or_dash(state, fit["retention"][group]) for group in ("class", "siblings", "unrelated")),
        )
        for _, run in runs
        for state, fits in run["rows"].items()
        for fit in fits
    ]
    recognised = ("recognised alone", "recognised where its class is asked for")
    headings = ("state", *recognised, "identity alone", "identity composed", "composed", "caption match")
    return table((*headings, "class kept", "siblings kept", "unrelated kept"), rows, runs)


def instances_removed(source: str, results: Path) -> str:
    """Return one row a way of removing an individual: it, its class, its siblings, the rest."""
    runs = read_runs(source, results)
    rows = [
        (
            state,
            rate_cell(row["gone"]),
            *(_kept_or_dash(state, row["kept"][group]) for group in ("class", "siblings", "unrelated")),
        )
        for _, run in runs
        for state, row in run["rows"].items()
    ]
    return table(("method", "gone", "class kept", "siblings kept", "unrelated kept"), rows, runs)


def _kept_or_dash(state: str, rate: Mapping[str, Any] | None) -> str:
    return "–" if state == "original" or rate is None else rate_cell(rate)
