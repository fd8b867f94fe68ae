"""Tables of the tiny world itself: its generator, its oracle, its text states and its attention."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .layout import (
    rate_cell,
    read_runs,
    table,
)


def tinyworld_quality(source: str, results: Path) -> str:
    """Return one row a group of prompts: how often the model draws what it was asked for."""
    rows = [
        (name, rate_cell(group), f"{worst} ({group['each'][worst]['value']:.2f})")
        for _, run in read_runs(source, results)
        for name, group in run["groups"].items()
        for worst in [min(group["each"], key=lambda each: group["each"][each]["value"])]
    ]
    return table(("prompts", "images that show it", "worst"), rows, read_runs(source, results))


def golds(source: str, results: Path) -> str:
    """Return two rows a gold: its rates of what it was taught, and the shipped model's on the same prompts."""
    from erasure.tinyworld.vocabulary import INDIVIDUALS

    [(_, shipped)] = read_runs("tinyworld-quality/run.json", results)
    rows, groups = [], shipped["groups"]
    for path, run in read_runs(source, results):
        name = path.parent.name.removeprefix("gold-")
        recipe = json.loads((results / "golds" / name / "recipe.json").read_text(encoding="utf-8"))
        untaught = {*recipe["settings"]["without"]}
        untaught |= {individual for individual, kind in INDIVIDUALS.items() if kind in untaught}
        rows.append((f"`{name}`", *_taught(run["groups"], untaught)))
        rows.append(("shipped", *_taught(groups, untaught)))
    return table(("model", *groups, "all"), rows, read_runs(source, results))


def _taught(groups: Mapping[str, Any], untaught: Collection[str]) -> list[str]:
    """Return the rate of each group of prompts, and of all, without prompts for what was left out; a dash for none."""
    counts = [
        [
            (rate["hits"], rate["n"])
            for name, rate in group["each"].items()
            if not {*name.split(" + ")}.intersection(untaught)
        ]
        for group in groups.values()
    ]
    sums = [tuple(map(sum, zip(*each, strict=True))) for each in [*counts, [one for each in counts for one in each]]]
    return [f"{each[0] / each[1]:.3f} of {each[1]}" if each else "–" for each in sums]


def tinyworld_oracle(source: str, results: Path) -> str:
    """Return one row a question put to the oracle on fresh drawings."""
    rows = [
        (name, rate_cell(rate))
        for _, run in read_runs(source, results)
        for name, rate in {
            **{name: rate for name, rate in run["oracle"].items() if isinstance(rate, Mapping) and "hits" in rate},
            **{f"false alarms, {name}": rate for name, rate in run["oracle"]["false alarms"].items()},
        }.items()
    ]
    return table(("oracle", "share"), rows, read_runs(source, results))


def tinyworld_tokens(source: str, results: Path) -> str:
    """Return one row a mixture of text states: how often the object is drawn."""
    rows = [(name, rate_cell(rate)) for _, run in read_runs(source, results) for name, rate in run["tokens"].items()]
    return table(("text states", "images that show the object"), rows, read_runs(source, results))


def tinyworld_attention(source: str, results: Path) -> str:
    """Return one row a word: how well its cross-attention map covers the object's true box."""
    rows = [
        (name, f"{value['value']:.3f} ± {value['standard_error']:.3f} of {run['attention']['n']}")
        for _, run in read_runs(source, results)
        for name, key in (
            ("the object's", "own"),
            ("another, at random", "other word"),
            ("all before it", "words before it"),
            ("all after it", "words after it"),
        )
        for value in [run["attention"][key]]
    ]
    return table(("word", "IoU of its map with the box"), rows, read_runs(source, results))
