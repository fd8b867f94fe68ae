"""The layout of a table: cells, the runs that its numbers come from, and a line for each run's source."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
NOTHING = "*No result is committed yet.*\n"

Run = Mapping[str, Any]


def read_runs(source: str, results: Path) -> list[tuple[Path, Run]]:
    """Return the records that match a pattern below the results, sorted by path."""
    paths = sorted(results.glob(source))
    return [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], runs: Iterable[tuple[Path, Run]]) -> str:
    """Return a table and, below it, where its numbers come from."""
    if not rows:
        return NOTHING
    cells = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in cells)
    sources = "".join(f"- {source_line(path, run)}\n" for path, run in runs)
    return lines + (f"\n{sources}" if sources else "")


def source_line(path: Path, run: Run) -> str:
    """Return a link to the run beside what made it: commit, machine, versions."""
    shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
    git = run.get("git") or {}
    commit = f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}" if git else "no commit known"
    threads = f", {run['threads']} threads" if run.get("threads") else ""
    torch = f", torch {run['versions']['torch']}" if "torch" in run.get("versions", {}) else ""
    return f"`{shown}`: {commit}, {run.get('device', 'cpu')}{threads}{torch}"


def grouped_sources(runs: Iterable[tuple[Path, Run]]) -> str:
    """Return a line for each commit and machine that made some of the runs, each of which is a row."""
    counts: dict[str, int] = {}
    for path, run in runs:
        origin = source_line(path, run).partition(": ")[2]
        counts[origin] = counts.get(origin, 0) + 1
    return "\n" + "".join(f"- {n} row{'s' if n > 1 else ''}: {origin}\n" for origin, n in counts.items())


def changed_settings(run: Run) -> str:
    """Return the settings of a run's eraser that are not its defaults; "defaults" if none."""
    settings = {**run.get("config", {}).get("eraser", {})}
    defaults = defaults_of(settings.pop("name")) if settings else {}
    return ", ".join(f"{name}={value}" for name, value in changes(settings, defaults).items()) or "defaults"


def defaults_of(eraser: str) -> dict[str, Any]:
    """Return the defaults of an eraser's settings as plain JSON values, nested settings in turn."""
    from erasure.erasers import eraser_class

    values = {field.name: default_of(field) for field in fields(eraser_class(eraser))}
    plain = {name: value for name, value in values.items() if value is not MISSING}
    return json.loads(json.dumps(plain, default=_as_settings))


def _as_settings(piece: Any) -> dict[str, Any]:
    from erasure.registry import Plugin

    return {**({"name": piece.name} if isinstance(piece, Plugin) else {}), **piece.as_settings()}


def changes(settings: Mapping[str, Any], defaults: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the settings that are not the defaults, nested ones by their path: `objective.max_odds`."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            changed |= changes(value, default, f"{where}{name}.")
        elif value != default:
            changed[where + name] = value
    return changed


def default_of(field: Field[Any]) -> Any:
    """Return a field's default, made where it is made; MISSING where there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def target_names(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the targets of some removals, in order."""
    concepts = [concept for step in steps for concept in step["concepts"]]
    return [concept["target"] if isinstance(concept, Mapping) else str(concept) for concept in concepts]


def fit_seconds(steps: Iterable[Mapping[str, Any]]) -> str:
    """Return the seconds of the fits together; a dash where one was not recorded."""
    seconds = [step["seconds"] for step in steps]
    return "–" if None in seconds else f"{sum(seconds):.1f}"


def rate_cell(rate: Mapping[str, Any]) -> str:
    """Return a share with its interval and count."""
    low, high = rate["interval"]
    return f"{rate['value']:.3f} [{low:.3f}, {high:.3f}] of {rate['n']}"


def residue_cell(rho: Mapping[str, Any] | None) -> str:
    """Return a residue with its interval; a dash for none."""
    return "–" if rho is None else f"{rho['value']:.2f} [{rho['low']:.2f}, {rho['high']:.2f}]"


def score_cell(score: Mapping[str, Any] | None) -> str:
    """Return a score with its interval, its count and its concept if it has one; a dash for none."""
    if score is None or score["value"] is None:
        return "–"
    interval = "" if score["low"] is None else f" [{score['low']:.3g}, {score['high']:.3g}]"
    whose = f", {score['concept']}" if "concept" in score else ""
    return f"{score['value']:.3g}{interval} of {score['n']}{whose}"


def held_out_cell(step: Mapping[str, Any]) -> str:
    """Return the efficacy of a step in held-out phrasings; a dash for a measure that did not tell them apart."""
    rate = step.get("held_out")
    return "–" if rate is None else rate_cell(rate)


def share_cell(step: Mapping[str, Any], name: str) -> str:
    """Return a rate of a step with its interval and count; a dash where there is none."""
    value = step["efficacy"] if name == "efficacy" else step["retention"][name]
    if value is None:
        return "–"
    low, high = step["interval"][name]
    return f"{value:.3f} [{low:.3f}, {high:.3f}] of {step['n'][name]}"


def page_of(name: str) -> str:
    """Return the page about an eraser, from the root of the project; "" without one."""
    places = (f"docs/erasers/{name}.md", f"docs/{name}.md")
    return next((place for place in places if (ROOT / place).is_file()), "")
