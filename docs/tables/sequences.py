"""Tables of sequences of removals, one after another."""

from collections.abc import Sequence
from pathlib import Path

from .layout import (
    Run,
    read_runs,
    table,
)


def continual(source: str, results: Path) -> str:
    """Return one row a run, as it stands after its last removal, beside the original it started from."""
    from experiments.continual_curves import label

    rows = []
    for path, run in read_runs(source, results):
        first, last = _ends(run)
        rows.append(
            (
                label(path.parent.name),
                f"{run['order']}, {run['seed']}",
                _plain(last, "ua"),
                *(f"{_plain(last, key)}, {last[key] / first[key]:.2f} of before" for key in ("ra_near", "ra_far")),
                f"{last['ge']:.3f}",
                f"{run['slope']:.4f}",
                "–" if last["fd"] is None else f"{last['fd']:.4f}",
                f"{last['drift']:.3f}",
                f"{sum(removal['training_seconds'] for removal in run['removals']):.0f}",
            )
        )
    headings = ("method", "order, seed", "UA", "RA near", "RA far", "GE", "slope of GE", "FD", "drift", "seconds")
    return table(headings, rows, read_runs(source, results))


def continual_headline(source: str, results: Path) -> str:
    """Return one row a method, ablations left out: the mean over its runs of what is gone and what stays at the end."""
    from experiments.continual_curves import grouped, label

    runs = [(path, run) for path, run in read_runs(source, results) if "-no-" not in path.parent.name]
    rows = []
    for method, each in grouped([{"label": label(path.parent.name), **run} for path, run in runs]).items():
        ends = [_ends(run) for run in each]
        seconds = [removal["training_seconds"] for run in each for removal in run["removals"]]
        rows.append(
            (
                method,
                str(len(each)),
                _mean_and_range([last["ua"] for _, last in ends]),
                _mean_and_range([last["ra_near"] / first["ra_near"] for first, last in ends]),
                _mean_and_range([last["ra_far"] / first["ra_far"] for first, last in ends]),
                f"{sum(seconds) / len(each):.0f}",
            )
        )
    headings = ("method", "runs", "gone, of all eight", "near, of before", "far, of before", "seconds of training")
    return table(headings, rows, runs)


def _ends(run: Run) -> tuple[Run, Run]:
    """Return the points of a sequence before its first and after its last removal."""
    return run["points"]["0"], run["points"][max(run["points"], key=int)]


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def _plain(point: Run, key: str) -> str:
    low, high = point[f"{key}_interval"]
    return f"{point[key]:.3f} [{low:.3f}, {high:.3f}]"
