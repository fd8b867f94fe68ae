"""The page of a personalised model: the instance learned, composed, forgotten, and what became of its class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from erasure.io.files import write_whole

from ..protocols.instances.metrics import InstanceMetrics
from ..protocols.instances.prompts import KEPT, InstanceRequest
from ..protocols.instances.record import InstanceRecord, InstanceState
from ..protocols.instances.scores import InstanceScores
from .page import embedded, filled

_LARGEST = 256
_SHOWN = {"alone": 4, "composed": 8, "class": 4, "siblings": 4, "unrelated": 4}
_HEADINGS = {
    "alone": "The instance by itself",
    "composed": "In styles, places and company",
    "class": "Its class",
    "siblings": "What is like its class",
    "unrelated": "Everything else",
}


def terminal_table(states: Sequence[InstanceState]) -> Table:
    """Return a line a measure, a column a state."""
    table = Table("", *(state.name for state in states), box=None, pad_edge=False)
    for measure in _measures(states):
        table.add_row(measure.name, *measure.cells)
    return table


def write_instance_report(
    record: InstanceRecord,
    states: Sequence[InstanceState],
    metrics: InstanceMetrics | None,
    facts: Mapping[str, Any],
    name: str = "report",
) -> Path:
    """Write the page and the numbers beside it into the record's folder, and return the path of the page.

    Args:
        record: Record of the instance.
        states: States of the model, the original first.
        metrics: Metrics of the images; None if nothing was measured.
        facts: Settings, versions and other facts.
        name: Name of the files, without their suffixes.

    Raises:
        InputError: The folder cannot be written.
    """
    record.write_numbers(states, metrics, facts, name)
    instance = record.instance
    page = filled(
        "instance",
        title=f"{instance.token}, a {instance.class_word}: {', '.join(state.name for state in states)}",
        states=[state.name for state in states],
        measures=_measures(states),
        images=[embedded(image, _LARGEST) for image in record.images],
        groups=_groups(record.requests, states),
        pixelated=min(states[0].images[0].size) <= 128,
        judge=metrics.title if metrics is not None else None,
        skipped=dict(metrics.skipped) if metrics is not None else {},
        notes=record.notes(metrics),
        facts=json.dumps(facts, indent=1, ensure_ascii=False),
    )
    path = record.folder / f"{name}.html"
    write_whole(path, page.encode())
    return path


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """A line of the table."""

    name: str
    explained: str
    cells: tuple[str, ...]


_OF = {"alone": "of it alone", "composed": "of it composed", "class": "of its plain class"}


def _measures(states: Sequence[InstanceState]) -> list[_Measure]:
    """Return a line for each number of the states; none unless all states have scores."""
    known = [state.scores for state in states if state.scores is not None]
    if len(known) < len(states):
        return []
    return [*_likeness(known), *_composition(known), *_preservation(known)]


def _line(name: str, explained: str, values: Sequence[object], *, before: bool = True) -> _Measure:
    """Return a line of the table; without `before` the original's value is left out."""
    cells = [str(value) if value is not None and (i or before) else "–" for i, value in enumerate(values)]
    return _Measure(name=name, explained=explained, cells=tuple(cells))


def _likeness(known: Sequence[InstanceScores]) -> list[_Measure]:
    return [
        _line(
            f"likeness {_OF[group]} ({name})",
            "to the images that it was learned from",
            [each.likeness[name][group] for each in known],
        )
        for name, groups in known[0].likeness.items()
        for group in groups
    ]


def _composition(known: Sequence[InstanceScores]) -> list[_Measure]:
    composed = _line(
        "composed",
        "share of the images in company that show the class and all else that was asked for",
        [each.composed for each in known],
    )
    fits = [
        _line(
            f"{'fit to the prompt' if form == 'whole' else 'least fit to a part'} ({name})",
            "of images in company" if form == "whole" else "the least over the whole prompt and each of its parts",
            [each.fits[name][form] for each in known],
        )
        for name, forms in known[0].fits.items()
        for form in forms
    ]
    return [*([composed] if known[0].composed is not None else []), *fits]


def _preservation(known: Sequence[InstanceScores]) -> list[_Measure]:
    retention = [
        _line(
            f"kept: {group}",
            "of the images in which the original shows what was asked for, the share that still do",
            [each.retention[group] for each in known],
            before=False,
        )
        for group in KEPT
        if known[0].retention.get(group) is not None
    ]
    changes = [
        _line(
            f"fit of {group} ({name}), moved by",
            "how well images fit their prompts, less the original's for the same seeds",
            [each.moved[group][name] for each in known],
            before=False,
        )
        for group, metrics in known[0].moved.items()
        for name in metrics
    ]
    return [*retention, *changes]


def _groups(requests: Sequence[InstanceRequest], states: Sequence[InstanceState]) -> list[dict[str, Any]]:
    """Return the first images of each group, not chosen by their looks."""
    groups = []
    for group, most in _SHOWN.items():
        rows = [i for i, request in enumerate(requests) if request.group == group][:most]
        strips = [
            {
                "prompt": requests[i].filled(states[-1].phrase if len(states) > 1 else states[0].phrase),
                "seed": requests[i].seed,
                "frames": [{"name": state.name, "src": embedded(state.images[i], _LARGEST)} for state in states],
            }
            for i in rows
        ]
        if strips:
            groups.append({"name": _HEADINGS[group], "strips": strips})
    return groups
