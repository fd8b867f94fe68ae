"""An evaluation as one HTML page that needs nothing else, and as a table for a terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from rich.table import Table

from erasure.io.files import make_folder, write_whole

from ..benchmarks import Item
from ..metrics.distances import SetDistance
from ..protocols.evaluate import Evaluation, display_name
from ..protocols.measures import is_efficacy
from ..protocols.variants import ERASED, ORIGINAL
from ..stats.allocation import evenly
from ..stats.scores import LeastShare, Score, written
from .page import embedded, filled

FAILURES, EXAMPLES = 12, 4
"""Strips of each kind of failure, and of each group without choice."""
_LARGEST = 256


def terminal_table(evaluation: Evaluation) -> Table:
    """Return metrics by rows, an interval below each value."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("metric", no_wrap=True)
    scores = evaluation.scores
    for name in scores:
        table.add_column(display_name(name), no_wrap=True)
    for metric in _metrics(scores):
        view = _metric_view(metric, scores)
        cells = ("\n".join(cell) if cell else "–" for cell in view["cells"])
        table.add_row("\n".join(filter(None, (f"{view['name']} {view['arrow']}", view["n"]))), *cells)
    return table


def write_evaluation_report(evaluation: Evaluation, folder: Path, title: str) -> Path:
    """Write `report.html` into a folder and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    make_folder(folder)
    path = folder / "report.html"
    write_whole(path, render(evaluation, title).encode())
    return path


def render(evaluation: Evaluation, title: str) -> str:
    """Return the page."""
    data = evaluation.as_json()
    scores = evaluation.scores
    first = next(iter(evaluation.stores.values()))
    return filled(
        "evaluation",
        title=title,
        subtitle=f"{evaluation.benchmark.id}; model {data['protocol']['fingerprint'][:12]}",
        rows=[{"name": display_name(name), "about": row.about} for name, row in evaluation.variants.items()],
        metrics=[_metric_view(metric, scores) for metric in _metrics(scores)],
        skipped=sorted(evaluation.skipped.items()),
        warnings=evaluation.warnings,
        concepts=_concepts(evaluation),
        curves=_curves(evaluation),
        strips=_strips(evaluation),
        frames=len(evaluation.stores),
        pixelated=first[0].width < 128,
        protocol=json.dumps(data["protocol"], indent=1, ensure_ascii=False),
        differences=[_difference_view(name, measured) for name, measured in data["differences"].items()],
    )


def _metrics(scores: Mapping[str, Mapping[str, Score]]) -> list[str]:
    return list(dict.fromkeys(metric for row in scores.values() for metric in row))


def _metric_view(metric: str, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    measured = [row.get(metric) for row in scores.values()]
    known = [score for score in measured if score is not None]
    alike = len({_counted(score) for score in known}) == 1
    return {
        "name": display_name(metric),
        "arrow": _arrow(known[0]),
        "unit": known[0].unit,
        "n": _counted(known[0]) if alike else "",
        "cells": [score and [*_figures(score), *([] if alike else [_counted(score)])] for score in measured],
    }


def _counted(score: Score) -> str:
    against = f" against {score.reference_n:,}" if isinstance(score, SetDistance) else ""
    return f"n {score.n:,}{against}"


def _arrow(score: Score) -> str:
    return "↑" if score.higher_is_better else "↓"


def _figures(score: Score) -> list[str]:
    """Return the value and, a line each, the interval and whose it is, where there are such."""
    value, *bounds = written(score.value, *(score.bounds or ()))
    lines = [f"[{', '.join(bounds)}]"] if bounds else []
    return [value, *lines, *([score.concept] if isinstance(score, LeastShare) else [])]


def _concepts(evaluation: Evaluation) -> list[dict[str, Any]]:
    judged = next(iter(evaluation.measures))
    groups: dict[str, list[dict[str, Any]]] = {"removed": [], "kept": []}
    for name, score in evaluation.measures[judged].concepts.items():
        low, high = score.bounds or (score.value, score.value)
        group = "removed" if is_efficacy(score) else "kept"
        groups[group].append(
            {
                "name": name,
                "low": f"{100 * low:.1f}",
                "width": f"{100 * (high - low):.1f}",
                "at": f"{100 * score.value:.1f}",
                "text": f"{score.value:.2f} of {score.n}",
                "value": score.value,
            }
        )
    return [
        {"name": f"{name.capitalize()}, worst first", "concepts": sorted(items, key=lambda it: it["value"])}
        for name, items in groups.items()
        if items
    ]


def _curves(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return where the lines of each drawing go; its concepts are ordered by the judged row, worst first."""
    judged = next(iter(evaluation.measures))
    left, right, top, bottom = 44.0, 1064.0, 14.0, 214.0
    drawings = []
    for kind, say in (("removed", "efficacy"), ("kept", "retention")):
        chosen = {
            row: {name: score for name, score in measured.concepts.items() if is_efficacy(score) == (kind == "removed")}
            for row, measured in evaluation.measures.items()
        }
        names = sorted(chosen[judged], key=lambda name: chosen[judged][name].value)
        if len(names) < 2:
            continue
        places = {name: left + (right - left) * (i + 0.5) / len(names) for i, name in enumerate(names)}
        lines = [
            {
                "key": row,
                "name": display_name(row),
                "dots": [_dot(row, name, places[name], scores[name], top, bottom) for name in names if name in scores],
            }
            for row, scores in chosen.items()
            if scores
        ]
        drawings.append(
            {
                "name": f"{kind.capitalize()}: {say} of each concept, worst first",
                "lines": lines[::-1],  # the judged row on top
                "judged": judged,
                "grid": [(bottom - (bottom - top) * share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
                "labels": [(places[name], name) for name in names],
                "left": left,
                "right": right,
            }
        )
    return drawings


def _dot(row: str, name: str, x: float, score: Score, top: float, bottom: float) -> dict[str, Any]:
    low, high = score.bounds or (score.value, score.value)
    y, lowest, highest = (bottom - (bottom - top) * share for share in (score.value, low, high))
    return {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "low": f"{lowest:.1f}",
        "high": f"{highest:.1f}",
        "say": f"{display_name(row)}, {name}: {score.value:.2f}, {low:.2f} to {high:.2f}, n {score.n}",
    }


def _difference_view(name: str, measured: Mapping[str, Any]) -> dict[str, str]:
    value, low, high = written(measured["value"], measured["low"], measured["high"])
    test = measured.get("mcnemar")
    return {
        "name": display_name(name),
        "value": value if value.startswith("-") else f"+{value}",
        "interval": f"[{low}, {high}]",
        "n": f"{measured['n']:,}",
        "changed": "" if test is None else f"{test['lost']} lost, {test['gained']} gained",
        "p": "" if test is None else _p_value(test["p_value"]),
    }


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"


def _strips(evaluation: Evaluation) -> list[dict[str, Any]]:
    items, judged = evaluation.benchmark.items, next(iter(evaluation.measures))
    seen, before = evaluation.measures[judged].seen, evaluation.measures[ORIGINAL].seen
    removed = np.array([bool(item.unwanted) for item in items])
    groups = [
        ("Still seen", "of what was removed", removed & (seen == 1), True),
        ("Lost", "of what should have stayed", ~removed & (before == 1) & (seen == 0), False),
    ]
    views = []
    for name, say, failed, surest in groups:
        if judged == ERASED and failed.any():
            worst = worst_first(failed, evaluation.measures[judged].probability, surest=surest)
            shown = f", {FAILURES} of them" if len(worst) > FAILURES else ""
            counted = "1 image" if len(worst) == 1 else f"{len(worst)} images{shown}"
            views.append(_group(evaluation, name, f"{say}: {counted}", worst[:FAILURES]))
    for group in dict.fromkeys((item.group, item.wording) for item in items):
        rows = [i for i, item in enumerate(items) if (item.group, item.wording) == group]
        views.append(_group(evaluation, group[0].capitalize(), group[1], evenly(rows, EXAMPLES)))
    return views


def worst_first(failed: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"], *, surest: bool) -> list[int]:
    """Return the rows that failed, the ones of which the judge is surest first.

    Args:
        failed: Failures among the rows.
        probability: Probability of the concept in each row.
        surest: Whether presence is the failure; else absence is.
    """
    rows = np.flatnonzero(failed)
    return rows[np.argsort(-probability[rows] if surest else probability[rows], kind="stable")].tolist()


def _group(evaluation: Evaluation, name: str, say: str, rows: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "say": say, "strips": [_strip(evaluation, row) for row in rows]}


def _strip(evaluation: Evaluation, row: int) -> dict[str, Any]:
    item = evaluation.benchmark.items[row]
    frames = []
    for name, store in evaluation.stores.items():
        measured = evaluation.measures[name]
        verdict = _verdict(item, float(measured.seen[row]), float(measured.probability[row]))
        frames.append({"row": display_name(name), "src": embedded(store[row], _LARGEST), **verdict})
    return {"prompt": item.prompt, "seed": item.seed, "frames": frames}


def _verdict(item: Item, seen: float, probability: float) -> dict[str, Any]:
    if np.isnan(seen):
        return {"text": "", "good": False}
    text = f"{item.unwanted or item.retained} {'seen' if seen else 'not seen'}, {probability:.2f}"
    return {"text": text, "good": bool(seen) != bool(item.unwanted)}
