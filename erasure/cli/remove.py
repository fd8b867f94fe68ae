"""`erasure remove`."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import InputError
from ..io.processes import by_first, together, wait
from ..progress import progress_bars
from .console import err, note_on, out, print_json
from .entries import entry_line, removals_table, step_json
from .models import base_of, existing_device, lasting_name, load_pipe, new_folder
from .options import MOST_SEED, AsJson, CommandGroup, Link, LowMemory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..ledger import Ledger
    from ..runs.schema import Run

commands = CommandGroup("Remove and undo")
_ENDANGERED = 5


@commands.command()
def remove(
    concepts: Annotated[
        list[str] | None, typer.Argument(metavar="CONCEPT ...", help="Concepts to remove, in this order.")
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="CSV file of concepts, with optional anchor and preserve columns."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model: tinyworld, a diffusers folder or a Hub id; default: the base of the ledger, else tinyworld."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Eraser: {erasers}; several as one: hirm+speed; default: uce.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Eraser by the time that a removal may take: {budgets}; in place of --method.")
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Anchor concept that replaces the target; default: the unconditional prompt."
        ),
    ] = None,
    preserve: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT ...",
            help="Concepts that must not change; default: all others that the model's profile knows.",
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of the concepts: object, style, identity or unsafe; default: that of the profile, else object."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting by path: eraser.reg=0.1, measure.far=400."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file of the whole run; options override it.")
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New or existing ledger; default: a new one under erasure-runs."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MOST_SEED, help="Seed of the fits; default: 0.")] = None,
    device: Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda, cuda:1, mps; default: auto.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="Implementation of attention: sdpa, or xformers on CUDA; default: sdpa.")
    ] = None,
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Remove without measuring.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which preserved concepts the removals endanger, and write nothing.")
    ] = False,
    low_memory: LowMemory = False,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="New folder to write the edited model to.")
    ] = None,
    link: Link = False,
    as_json: AsJson = False,
) -> None:
    """Remove concepts one after another, each as an entry of a ledger, and measure after each."""
    start = time.perf_counter()
    from ..runs.configs import read_config
    from ..runs.overrides import override
    from ..runs.schema import parse

    raw: dict[str, Any] = read_config(config) if config is not None else {}
    lists = _set_concepts(
        raw, concepts or [], from_file, {"anchor": anchor, "preserve": preserve or None, "kind": kind}
    )
    _set_eraser(raw, method, budget)
    options = {"model": model, "seed": seed, "device": device, "attention": attention}
    options["output"] = None if ledger is None else str(ledger)
    raw.update({key: value for key, value in options.items() if value is not None})
    if no_measure:
        raw["measure"] = None
    for assignment in settings or []:
        raw = override(raw, assignment)
    output = raw.get("output")
    if "model" not in raw and isinstance(output, str) and output and (base := base_of(Path(output))):
        raw["model"] = base
    if dry_run:
        _dry_run(parse(raw), lists=lists, as_json=as_json)
        return
    with together():
        _remove(parse(raw), lists=lists, low_memory=low_memory, to=to, link=link, as_json=as_json, start=start)


def _dry_run(run: "Run", *, lists: Sequence[Path], as_json: bool) -> None:
    """Print the preserved concepts that each removal of a run endangers."""
    from ..runs import removal
    from ..runs.dry_run import endangered_by

    pipe = load_pipe(run.model, existing_device(run.device), run.attention)
    removal.check_lengths(run, pipe, lists)
    results: dict[str, list[dict[str, Any]]] = {}
    for concept, drifts in endangered_by(run, pipe):
        results[concept.target] = [{"name": name, "drift": drift} for name, drift in drifts]
        if not as_json:
            first, *others = [f"{name} ({drift:.2g})" for name, drift in drifts[:_ENDANGERED]]
            out.print(
                f"{concept.target}: endangers first of all {first}{', then ' if others else ''}{', '.join(others)}."
            )
    if as_json:
        print_json({"endangered": results})


def _set_eraser(raw: dict[str, Any], method: str | None, budget: str | None) -> None:
    """Set the eraser of a config by its name or by a budget; the settings that it has there for that name stay.

    Raises:
        InputError: Both are given, or there is no such budget.
    """
    from ..runs.budgets import eraser_of_budget

    if method is not None and budget is not None:
        raise InputError(
            f"remove: expected --method or --budget, got both ({method!r} and {budget!r}). Leave one of them out."
        )
    if budget is not None:
        raw["eraser"] = eraser = eraser_of_budget(budget)
        if "parts" in eraser:  # --set can reach into a part that is more than its name
            eraser["parts"] = [{"name": part} if isinstance(part, str) else part for part in eraser["parts"]]
    elif method is not None and not (isinstance(raw.get("eraser"), dict) and raw["eraser"].get("name") == method):
        raw["eraser"] = {"name": method}


def _set_concepts(
    raw: dict[str, Any], names: Sequence[str], file: Path | None, shared: Mapping[str, str | list[str] | None]
) -> list[Path]:
    """Set the concepts of a config from arguments and a file; fields that they share apply to each.

    Returns:
        The files that they are from.

    Raises:
        InputError: There is no concept.
    """
    from ..runs.lists import list_path, read_concepts

    lists = [file] if file is not None else []
    requests = [{"target": name} for name in names] + [concept for path in lists for concept in read_concepts(path)]
    common = {key: value for key, value in shared.items() if value is not None}
    if not requests and isinstance(raw.get("concepts"), str) and raw["concepts"]:
        lists = [list_path(raw["concepts"])]
        requests = read_concepts(lists[0]) if common else []
    if requests:
        raw["concepts"] = [{**common, **request} for request in requests]
    elif common and isinstance(raw.get("concepts"), list):
        raw["concepts"] = [{**c, **common} if isinstance(c, dict) else c for c in raw["concepts"]]
    if not raw.get("concepts"):
        raise InputError(
            "remove: expected at least one concept, got none. Name one, or give --from FILE or --config FILE."
        )
    return lists


def _remove(
    run: "Run", *, lists: Sequence[Path], low_memory: bool, to: Path | None, link: bool, as_json: bool, start: float
) -> None:
    """Carry out a run and print its results; the lists are the files of its concepts."""
    from erasure.eval.protocols.ledger_measures import LedgerMeasures, health_lines
    from erasure.eval.reports.ledger_report import PLACES, write_report

    from ..io.files import check_places
    from ..ledger import starting
    from ..runs import removal

    show = err if as_json else out  # with --json, stdout holds the document alone
    if low_memory:
        removal.check_low_memory(run)
    device = "cpu" if low_memory else existing_device(run.device)
    folder = by_first(lambda: Path(run.output) if run.output else new_folder(run.concepts))
    check_places(folder, *PLACES)
    by_first(lambda: _check_out(to, folder, link))
    pipe = _loaded(run, device, low_memory)
    removal.check_lengths(run, pipe, lists)
    steps: list[dict[str, Any]] = []
    with starting(folder), progress_bars(err) as on_progress:
        ledger = _opened(folder, pipe, lasting_name(run.model))
        whole, earlier = run, removal.standing_of(run, ledger)
        run, already = removal.remaining(run, ledger)
        for name in already:
            show.print(f"{name}: already removed, see `erasure log {folder}`.")

        def skip(name: str) -> None:
            already.append(name)
            show.print(f"{name}: removed by another process meanwhile, see `erasure log {folder}`.")

        announce(run, show)
        record = LedgerMeasures(ledger, pipe, run.measure, on_progress)
        # A run that was killed has left at most its last entry unmeasured.
        left = by_first(lambda: [entry for entry in earlier[-1:] if not record.skipped and not record.measured(entry)])
        new = removal.remove(run, pipe, ledger, on_progress=on_progress, on_removed_already=skip)
        for entry in itertools.chain(left, new):
            measured = record.measure(entry)
            steps.append(step_json(entry, measured))
            show.print(entry_line(entry, measured))
        if record.skipped is not None:
            show.print(f"measure skipped: {record.skipped}.")
        facts = {
            **removal.facts(whole, device=device, start=start),
            "low_memory": low_memory,
            "steps": [step_json(entry, record.measured(entry)) for entry in removal.standing_of(whole, ledger)],
        }
        report = by_first(lambda: write_report(record, (not steps and removal.recorded_facts(folder)) or facts))
    if to is not None:
        by_first(lambda: _write_model(ledger, pipe, to, link))
    if as_json:
        print_json(_document(ledger, steps, already, record.skipped, to))
        return
    out.print(removals_table(ledger, record))
    out.print(*health_lines(ledger), f"report: {report}", sep="\n")
    if to is not None:
        out.print(f"model: {to}")


def _opened(folder: Path, pipe: "DiffusionPipeline", model: str) -> "Ledger":
    """Return the ledger of a folder, which the first process starts if there is none, before it has a new entry."""
    from ..ledger import Ledger

    opened: list[Ledger] = []
    by_first(lambda: opened.append(Ledger.open_or_create(folder, pipe, model)))
    ledger = opened[0] if opened else Ledger.open(folder)
    wait()
    return ledger


def _document(
    ledger: "Ledger", steps: Sequence[Mapping[str, Any]], already: Sequence[str], skipped: str | None, to: Path | None
) -> dict[str, Any]:
    """Return the results of a run as plain data."""
    return {
        "ledger": str(ledger.path),
        "base": {"name": ledger.base.name, "fingerprint": ledger.base.fingerprint},
        "steps": steps,
        "already_removed": already,
        "measure_skipped": skipped,
        "report": str(ledger.path / "report.html"),
        "run": str(ledger.path / "run.json"),
        "out": None if to is None else str(to),
    }


def _loaded(run: "Run", device: str, low_memory: bool) -> "DiffusionPipeline":
    """Return the model of a run, after a check that it fits into the memory unless it stays on the disk."""
    from ..loading.room import check_weights_fit

    if not low_memory:
        check_weights_fit(run.model, device)
        note_on(err, "erasure.training.memory")
    return load_pipe(run.model, device, run.attention, stored=low_memory)


def _check_out(to: Path | None, ledger: Path, link: bool) -> None:
    """Refuse an output folder that exists or is the ledger, before any work."""
    from ..io.files import check_free, resolved

    if to is None and link:
        raise InputError("--link: expected --out OUT beside it, got none. Leave it out.")
    if to is None:
        return
    check_free(to)
    if resolved(to) == resolved(ledger):
        raise InputError(f"--out: expected another folder than the ledger's, got {str(to)!r}. Name a new one.")


def _write_model(ledger: "Ledger", pipe: "DiffusionPipeline", to: Path, link: bool) -> None:
    """Write the edited model to a new folder, with a card without images."""
    from erasure.eval.reports.publish import publish
    from erasure.pipelines.export.formats import Export

    from ..io.files import resolved
    from ..sampling import SamplingSettings

    sampler = SamplingSettings.of(ledger.base.name)
    publish(ledger, pipe, Export(link=link), to, name=resolved(to).name, prompts=[], sampler=sampler)


def announce(run: "Run", show: Console) -> None:
    """Print the concepts of a run with their resolved settings."""
    for concept in run.concepts:
        aliases = f" (also {', '.join(concept.aliases)})" if concept.aliases else ""
        kept = (
            f"{len(concept.preserve)} others preserved"
            if len(concept.preserve) > 4
            else f"preserving {', '.join(concept.preserve) or 'nothing'}"
        )
        nothing = "what the fit finds" if run.eraser.finds_anchors else "nothing"
        becomes = repr(concept.anchor) if concept.anchor else nothing
        show.print(f"{concept.target}{aliases}: {concept.kind}, becomes {becomes}, {kept}", style="dim")
    shape = getattr(run.eraser, "shape", None)
    terms = [term.name for term in shape.terms] if shape is not None else []
    if any(name.startswith("semantic") for name in terms) or getattr(run.eraser, "class_phrases", False):
        from ..training.phrases import class_phrases

        phrases = class_phrases(run.concepts)
        some = "; ".join(phrases[:: max(1, len(phrases) // 6)][:6])
        show.print(f"class held in {len(phrases)} phrases, among them: {some}", style="dim")
