"""The waits of a user, from names to files and images, each beside the least that it could be."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .layout import read_runs, table
from .speed import LOW_MEMORY_MODELS, ratios_of

Case = Mapping[str, Any]
Wait = tuple[str, str, str, str]
"""The work, its time, the floor, and the ratio to that."""
NO_FLOOR = "–"


def waits(source: str, results: Path) -> str:
    """Return one row a wait, of those benchmarks whose run is committed, under the benchmark's name."""
    by_name = {path.parent.name: (path, run) for path, run in read_runs(source, results)}
    used = [by_name[name] for name in _WAITS if name in by_name]
    rows = [row for _, run in used for row in _WAITS[run["benchmark"]](run["results"])]
    return table(("work", "time", "floor", "times the floor"), rows, used)


def _startup(cases: Sequence[Case]) -> list[Wait]:
    [floor] = [case["seconds"] for case in cases if case["case"] == "empty interpreter"]
    [case] = [case for case in cases if case["case"] == "erasure --help"]
    return [("`erasure --help`", _seconds(case), f"{floor:.2f} s, an empty interpreter", _times(case, floor))]


def _closed_form(cases: Sequence[Case]) -> list[Wait]:
    taken = [case for case in cases if case.get("concepts") == 1000 and "floor" in case]
    return [
        (
            f"from the states of 1,000 concepts to new weights of {LOW_MEMORY_MODELS[case['model']]}",
            _seconds({"seconds": case["shared_seconds"]}),
            f"{_seconds(case['floor'])}, bytes and operations",
            _times({"seconds": case["shared_seconds"]}, case["floor"]["seconds"]),
        )
        for case in taken
    ]


def _bulk(cases: Sequence[Case]) -> list[Wait]:
    return [
        (
            (
                f"from 1,000 names to an edit of {LOW_MEMORY_MODELS[case['model']]},"
                f" templates with trailing states: {case['trailing_templates'] or 'all'}"
            ),
            f"{case['long'] / 60:.1f} min of a processor (from {case['names']} names)",
            f"{1000 * case['floor_each'] / 60:.1f} min of one, the encoders' operations",
            f"{case['long'] / (1000 * case['floor_each']):.2f}",
        )
        for case in cases
        if case["case"] == "removal"
    ]


def _low_memory(cases: Sequence[Case]) -> list[Wait]:
    return [
        (
            f"one name to an edited folder of {LOW_MEMORY_MODELS[case['model']]}, {way}",
            _seconds(case[key]),
            NO_FLOOR,
            NO_FLOOR,
        )
        for case in cases
        for key, way in (("low", "`--low-memory`"), ("loaded", "loaded"))
    ]


def _apply(cases: Sequence[Case]) -> list[Wait]:
    [copy] = [case["seconds"] for case in cases if case["case"] == "copy"]
    return [
        (
            f"an edit of {case['concepts']:,} concept{'s' * (case['concepts'] > 1)} written as a folder"
            + (" with links" if case["link"] else ""),
            _seconds(case),
            f"{_seconds({'seconds': copy})}, a plain copy",
            _times(case, copy),
        )
        for case in cases
        if case["case"] == "apply"
    ]


def _apply_edit(cases: Sequence[Case]) -> list[Wait]:
    return [
        (f"an edit of {case['concepts']:,} concepts {words} a loaded model", _seconds(case[key]), NO_FLOOR, NO_FLOOR)
        for case in cases
        if case.get("concepts") == 1000
        for key, words in (("apply", "put into"), ("undo", "taken out of"))
    ]


def _ledger(cases: Sequence[Case]) -> list[Wait]:
    last = [case for case in cases if case["case"] == "growth"][-1]
    fit = last["fit_seconds_each"]
    [whole] = [case for case in cases if case["case"] == "whole"]
    each = {"seconds": last["seconds_each"]}
    return [
        (
            f"an entry of a ledger with {last['removals']:,}, tiny world",
            _seconds(each),
            f"{fit:.3f} s, the fit",
            _times(each, fit),
        ),
        (
            f"an undo in it, solved for all {whole['removals']:,}",
            f"{whole['solve_seconds']:.1f} s",
            NO_FLOOR,
            NO_FLOOR,
        ),
    ]


def _evaluation(cases: Sequence[Case]) -> list[Wait]:
    return [
        (
            "an image of a measure, an audit or an evaluation, tiny world",
            f"{1 / case['store_images_per_second']:.3f} s",
            f"{1 / case['raw_images_per_second']:.3f} s, the raw pipeline",
            f"{1 / median(ratios_of(case)):.2f}",
        )
        for case in cases
        if case["case"] == "generation"
    ]


def _commands(cases: Sequence[Case]) -> list[Wait]:
    rows = []
    for case in cases:
        if case["case"] in _COMMANDS:
            command, floor = _COMMANDS[case["case"]]
            images = f", {case['images']:,} images" if case["images"] else ""
            time = f"{_seconds(case)}, {_seconds({'seconds': case['cpu']})} of a processor"
            least = f"{_seconds({'seconds': case['floor']['cpu']})} of one, {floor}"
            rows.append((f"{command}{images}, tiny world", time, least, f"{case['cpu'] / case['floor']['cpu']:.2f}"))
    return rows


_COMMANDS = {
    "measure": ("`erasure remove` with its quick measure", "a start and the raw pipeline"),
    "export": ("`erasure export` without images", "a start and a plain copy"),
    "card": ("`erasure export` with a model card", "a start, the raw pipeline and a plain copy"),
    "audit": ("`erasure audit`, the quick suite with a gold", "a start and the raw pipeline"),
    "demo": ("`erasure app`, until its page answers", "a start with Gradio and the raw pipeline"),
}

_WAITS: Mapping[str, Callable[[Sequence[Case]], list[Wait]]] = {
    "startup": _startup,
    "bulk": _bulk,
    "closed-form": _closed_form,
    "low-memory": _low_memory,
    "apply": _apply,
    "apply-edit": _apply_edit,
    "ledger": _ledger,
    "evaluation": _evaluation,
    "commands": _commands,
}


def _seconds(case: Case) -> str:
    return f"{case['seconds']:.2f} s" if case["seconds"] < 10 else f"{case['seconds']:.1f} s"


def _times(case: Case, floor: float) -> str:
    return f"{case['seconds'] / floor:.2f}"
