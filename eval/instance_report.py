"""The page of a personalised model: the instance learned, composed, forgotten, and what became of its class."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image
from rich.table import Table

from erasure.files import write_whole

from .instances import KEPT, Ask, InstanceJudge, InstanceScores
from .pictures import as_png

ORIGINAL = "original"
_SHOWN = {"alone": 4, "composed": 8, "class": 4, "siblings": 4, "unrelated": 4}
_HEADINGS = {
    "alone": "The instance by itself",
    "composed": "In styles, places and company",
    "class": "Its class",
    "siblings": "What is like its class",
    "unrelated": "Everything else",
}


@dataclass(frozen=True, kw_only=True)
class State:
    """One state of the model.

    Attributes:
        name: "original", "learned" or "forgotten".
        phrase: What its prompts call the instance.
        images: In the order of the asks.
        scores: What the judge says; None where there is none.
    """

    name: str
    phrase: str
    images: Sequence[Image.Image]
    scores: InstanceScores | None


def terminal_table(states: Sequence[State], judge: InstanceJudge | None) -> Table:
    """Return a line a state."""
    columns = _columns(states)
    table = Table("state", *columns, box=None, pad_edge=False)
    for state in states:
        table.add_row(state.name, *(_cell(state, column) for column in columns))
    return table


def write_instance_report(
    folder: Path,
    *,
    name: str,
    title: str,
    asks: Sequence[Ask],
    states: Sequence[State],
    pictures: Sequence[Image.Image],
    judge: InstanceJudge | None,
    notes: Sequence[str],
    facts: Mapping[str, Any],
) -> Path:
    """Write the page and return its path.

    Args:
        folder: Where.
        name: Of the file, without its ending.
        title: What was learned.
        asks: What the pictures were made for.
        states: The original first.
        pictures: That the instance was learned from.
        judge: Who looked; None for nobody.
        notes: What a reader must know.
        facts: Settings, versions and the like.

    Raises:
        InputError: The folder cannot be written.
    """
    text = resources.files("erasure.eval").joinpath("templates/instance.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    columns = _columns(states)
    page = environment.from_string(text).render(
        title=title,
        columns=columns,
        explained=[_EXPLAINED[column.partition(" ")[0]] for column in columns],
        rows=[{"name": state.name, "cells": [_cell(state, column) for column in columns]} for state in states],
        pictures=[_embedded(picture) for picture in pictures],
        groups=_groups(asks, states),
        pixelated=min(states[0].images[0].size) <= 128,
        judge=judge.title if judge is not None else None,
        skipped=dict(judge.skipped) if judge is not None else {},
        notes=list(notes),
        facts=json.dumps(facts, indent=1, ensure_ascii=False),
    )
    path = folder / f"{name}.html"
    write_whole(path, page.encode())
    return path


_EXPLAINED = {
    "like": "likeness to the pictures that it was learned from",
    "composed": "share of the composed pictures that show the class and all else that was asked for",
    "whole": "how well a composed picture fits its prompt",
    "least": "the least over the whole prompt and each of its parts",
    "kept": "of the pictures in which the original shows what was asked for, the share that still do",
    "moved": "how well pictures fit their prompts, less the original's for the same seeds",
}


def _columns(states: Sequence[State]) -> list[str]:
    """Return what there is a number of."""
    scores = next((state.scores for state in states if state.scores is not None), None)
    if scores is None:
        return []
    return [
        *(f"like {name}, {group}" for name, groups in scores.likeness.items() for group in groups),
        *(["composed"] if scores.composed is not None else []),
        *(f"{which} {name}" for name, forms in scores.fits.items() for which in forms),
        *(f"kept {group}" for group in KEPT if scores.retention.get(group) is not None),
        *(
            f"moved {name}, {group}"
            for group, metrics in scores.moved.items()
            for name in metrics
            if scores.retention.get(group) is None
        ),
    ]


def _cell(state: State, column: str) -> str:
    scores = state.scores
    if scores is None:
        return "–"
    kind, _, rest = column.partition(" ")
    if kind == "composed":
        return str(scores.composed)
    if kind == "kept":
        return "–" if state.name == ORIGINAL else str(scores.retention[rest])
    if kind in ("whole", "least"):
        return str(scores.fits[rest][kind])
    name, _, group = rest.partition(", ")
    if kind == "moved":
        return "–" if state.name == ORIGINAL else str(scores.moved[group][name])
    return str(scores.likeness[name][group])


def _groups(asks: Sequence[Ask], states: Sequence[State]) -> list[dict[str, Any]]:
    """Return the first pictures of each group, not chosen by their looks."""
    groups = []
    for group, most in _SHOWN.items():
        rows = [at for at, ask in enumerate(asks) if ask.group == group][:most]
        strips = [
            {
                "prompt": asks[at].filled(states[-1].phrase if len(states) > 1 else states[0].phrase),
                "seed": asks[at].seed,
                "frames": [{"name": state.name, "src": _embedded(state.images[at])} for state in states],
            }
            for at in rows
        ]
        if strips:
            groups.append({"name": _HEADINGS[group], "strips": strips})
    return groups


def _embedded(picture: Image.Image) -> str:
    shown = picture.copy()
    shown.thumbnail((256, 256))
    return "data:image/png;base64," + base64.b64encode(as_png(shown)).decode()
