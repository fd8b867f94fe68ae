"""The page of an attack: how often it succeeds over its budget, beside its controls, and what the images show."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from erasure.io.files import write_whole

from ..protocols.red_team import ROWS, AttackRun
from .page import embedded, filled

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 704.0, 14.0, 194.0


def terminal_table(assault: AttackRun) -> Table:
    """Return a line a row: success within one image and within the budget, and what the second judge says."""
    table = Table("prompts", "1 image", f"{assault.budget} images", "second judge agrees", box=None, pad_edge=False)
    for row in ROWS:
        rates, agreed = assault.rates(row), assault.confirmed(row)
        table.add_row(row, *(str(rate) for rate in (rates[0], rates[-1])), "–" if agreed is None else str(agreed))
    return table


def write_attack_report(assault: AttackRun, title: str) -> Path:
    """Write `report.html` beside the record and return its path.

    Raises:
        InputError: The folder cannot be written.
    """
    path = assault.folder / "report.html"
    write_whole(path, render(assault, title).encode())
    return path


def render(assault: AttackRun, title: str) -> str:
    """Return the page; it needs no network."""
    return filled(
        "attack",
        title=f"{assault.attack.name} on {title}",
        about=(type(assault.attack).__doc__ or "").partition("\n")[0],
        judge=assault.judge.name,
        second=assault.second and assault.second.name,
        prompts=len(assault.attacked),
        budget=assault.budget,
        rows=[
            {
                "name": row,
                "key": f"row{i}",
                "one": str(assault.rates(row)[0]),
                "all": str(assault.rates(row)[-1]),
                "confirmed": "–" if (agreed := assault.confirmed(row)) is None else str(agreed),
            }
            for i, row in enumerate(ROWS)
        ],
        curve=_curve(assault),
        strips=_strips(assault),
        protocol=json.dumps(assault.protocol, indent=1, ensure_ascii=False),
    )


def _curve(assault: AttackRun) -> dict[str, Any]:
    """Return where the lines go: the share of prompts with a success, over the images looked at."""

    def across(number: int) -> float:
        return _LEFT + (_RIGHT - _LEFT) * number / assault.budget

    def height(share: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * share

    lines = []
    for i, row in enumerate(ROWS):
        rates = assault.rates(row)
        through = [(across(0), height(0.0)), *((across(n), height(rate.value)) for n, rate in enumerate(rates, 1))]
        low, high = rates[-1].interval
        lines.append(
            {
                "key": f"row{i}",
                "name": row,
                "through": " ".join(f"{x:.1f},{y:.1f}" for x, y in through),
                "low": height(low),
                "high": height(high),
                "say": f"{row}: {rates[-1]}",
            }
        )
    marks = sorted({1, *range(0, assault.budget + 1, max(1, assault.budget // 4))} - {0})
    return {
        "lines": lines,
        "grid": [(height(share), f"{100 * share:.0f} %") for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
        "labels": [(across(mark), str(mark)) for mark in marks],
        "left": _LEFT,
        "right": _RIGHT,
    }


def _strips(assault: AttackRun) -> list[dict[str, Any]]:
    """Return the prompts' images, those that the attack brought back first."""
    order = sorted(range(len(assault.attacked)), key=lambda i: assault.attacked[i].rows[ROWS[0]].first is None)
    return [
        {
            "prompt": assault.attacked[i].prompt,
            "text": assault.attacked[i].text,
            "frames": [
                {
                    "row": row,
                    "src": embedded(path.read_bytes()) if (path := assault.image(i, row)).is_file() else "",
                    "hit": (tries := assault.attacked[i].rows[row]).first is not None,
                    "say": f"image {tries.first}" if tries.first else f"none of {tries.sampled}",
                }
                for row in ROWS
            ],
        }
        for i in order
    ]
