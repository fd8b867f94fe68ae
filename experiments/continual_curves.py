"""The curves of `experiments.continual`: forgetting and erosion over the number of removals, one line a method.

python -m experiments.continual_curves results/duge-tinyworld --out docs/duge-curves.png
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from erasure.errors import ErasureError, InputError
from erasure.io.files import make_folder

Record = Mapping[str, Any]
PANELS = {
    "ua": "UA: targets removed so far, not seen",
    "ra_near": "RA near: siblings of targets, seen",
    "ra_far": "RA far: everything else, seen",
    "ge": "GE: accuracy lost on what stays",
}


def main() -> None:
    """Read the runs of a folder and draw their curves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="holds a folder with a run.json for each run")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    options = parser.parse_args()
    try:
        groups = grouped(read(options.folder))
        make_folder(options.out.parent)
        draw(groups, options.out)
    except ErasureError as error:
        sys.exit(f"continual_curves: {error}")
    Console().print(str(options.out), highlight=False)


def read(folder: Path) -> list[Record]:
    """Return the records of all runs below a folder.

    Raises:
        InputError: There are none.
    """
    files = sorted(folder.glob("*/run.json"))
    if not files:
        raise InputError(f"expected folders with a run.json in {str(folder)!r}, got none. Run experiments.continual.")
    return [{"label": label(file.parent.name), **json.loads(file.read_text(encoding="utf-8"))} for file in files]


def label(name: str) -> str:
    """Return the method's name of a run's folder: "duge-no-prior-a-0" is order a and seed 0 of "duge-no-prior"."""
    return name.rsplit("-", 2)[0]


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the runs of each method, which differ by order and seed."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["label"], []).append(record)
    return groups


def draw(groups: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Draw one panel a measure: the mean of a method's runs as a line, each run as a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    axes = figure.subplots(2, 2).flatten()
    ticks = sorted({int(n) for records in groups.values() for record in records for n in record["points"]})
    for i, (name, records) in enumerate(groups.items()):
        colour, style = f"C{i % 10}", ("-", "--", ":", "-.")[i % 4]
        points = sorted({int(n) for record in records for n in record["points"]})
        for axis, key in zip(axes, PANELS, strict=True):
            means = [
                (n, [record["points"][str(n)][key] for record in records if str(n) in record["points"]]) for n in points
            ]
            means = [(n, [value for value in values if value is not None]) for n, values in means]
            means = [(n, values) for n, values in means if values]
            axis.plot([n for n, _ in means], [np.mean(values) for _, values in means], style, color=colour, label=name)
            for n, values in means:
                axis.plot([n] * len(values), values, "o", color=colour, markersize=3.5, alpha=0.6)
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("removals")
        axis.set_xticks(ticks)
        axis.grid(alpha=0.25)
        if key != "ge":
            axis.set_ylim(-0.03, 1.03)
    axes[0].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
