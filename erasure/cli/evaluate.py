"""Commands that measure: evaluate, scores, attack."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..progress import progress_bars
from .console import err, out, print_json, print_whole
from .models import existing_device, load_pipe, sampler_of
from .options import AsJson, AttentionBy, Device, Original, Removed


def evaluate(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    suite: Annotated[
        str | None,
        typer.Option(help="Of tinyworld: quick (default), standard or full: 80, 2,000 or 8,000 pictures a model."),
    ] = None,
    benchmark: Annotated[str, typer.Option(help="tinyworld, or one that reads prompts from --list.")] = "tinyworld",
    lists: Annotated[
        list[Path] | None, typer.Option("--list", metavar="FILE", help="Prompts of a public benchmark.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the benchmark: limit=1000.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    gold: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model trained without what was removed, or its denoiser.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="An image classifier with the classes of a public benchmark.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For scores.json and report.html.")] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Judge a model on a benchmark, beside the original, a negative prompt and a destroyed model."""
    from accelerate import PartialState

    from erasure.eval.protocols import sources
    from erasure.eval.protocols.evaluate import evaluate as evaluated
    from erasure.eval.protocols.evaluate import write_scores
    from erasure.eval.reports.evaluation_report import terminal_table, write_evaluation_report

    place = existing_device(device)
    what = sources.source_of(
        source, lambda name: load_pipe(name, place, attention), removed=removed or [], original=original, gold=gold
    )
    asked = sources.benchmark_of(benchmark, what, suite=suite, lists=lists or [], settings=settings or [])
    sampler = sources.sampler_of(asked, what)
    folder = to or what.folder / asked.short
    with progress_bars(err) as on_progress:
        found = evaluated(
            what.rows,
            asked,
            sources.metrics_of(asked, place, classifier),
            sampler=sampler,
            on_progress=on_progress,
            facts={"device": place},
        )
        if not PartialState().is_main_process:
            return  # each of several has the same numbers
        scores = write_scores(found, folder)
        report = write_evaluation_report(found, folder, what.title)
    if as_json:
        document = {**found.as_json(), "scores": str(scores), "report": str(report)}
        print_json(document)
        return
    print_whole(terminal_table(found))
    for warning in found.warnings:
        out.print(f"note: {warning}", markup=False)
    for name, why in found.skipped.items():
        out.print(f"not computed: {name}: {why}", markup=False)
    out.print(f"scores: {scores}", markup=False)
    out.print(f"report: {report}", markup=False)


def scores(
    files: Annotated[list[Path], typer.Argument(metavar="FILE ...", help="scores.json files, or their folders.")],
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Only this one; may be repeated  [default: all that agree]")
    ] = None,
    row: Annotated[str, typer.Option(help="erased, gold, original, negative_prompt or destroyed.")] = "erased",
    as_json: AsJson = False,
) -> None:
    """Set the scores of several evaluations side by side, as far as they were measured alike."""
    from erasure.eval.reports.score_files import compare_scores

    found = compare_scores(files, metrics or [], row)
    if as_json:
        print_json(found.as_json())
        return
    print_whole(found.table())
    for why, apart in found.reasons.items():
        out.print(f"not compared: {', '.join(apart)}: {why}", markup=False)


def attack(
    source: Annotated[str, typer.Argument(metavar="LEDGER|MODEL", help="A ledger's folder, or a model.")],
    name: Annotated[str, typer.Option("--attack", metavar="NAME", help="ring-a-bell, mma, unlearn-diff or revival.")],
    budget: Annotated[int, typer.Option(min=1, max=1000, help="Pictures a prompt, at most.")] = 20,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="How many prompts.")] = 40,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the attack: tokens=8.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, searches and pictures.")] = 0,
    to: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For attack.json and report.html.")] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Try to bring back what was removed, beside the controls that the result must be read against."""
    from erasure.eval.protocols import sources
    from erasure.eval.protocols.red_team import Assault, goals
    from erasure.eval.protocols.rows import ERASED
    from erasure.eval.reports.red_team_report import terminal_table, write_attack_report

    place = existing_device(device)
    chosen = sources.attack_of(name, settings or [])
    what = sources.source_of(
        source, lambda model: load_pipe(model, place, attention), removed=removed or [], original=original
    )
    if what.rows[0].name != ERASED:
        raise InputError(f"attack: expected a model that something was removed from, got the original {source!r}.")
    decides, second = sources.judges_of(what, place)
    assault = Assault(
        folder=to or what.folder.with_name("attacks") / f"{name}-{what.rows[0].edit or 'model'}",
        erased=what.rows[0],
        concepts=what.concepts,
        attack=chosen,
        sampler=sampler_of(what.original, None, None),
        budget=budget,
        judge=decides,
        second=second,
        model=what.original,
    )
    with progress_bars(err) as on_progress:
        assault.run(goals(what.concepts, prompts, model=what.original, seed=seed), on_progress)
    report = write_attack_report(assault, what.title)
    if as_json:
        document = {**assault.as_json(), "record": str(assault.folder / "attack.json"), "report": str(report)}
        print_json(document)
        return
    print_whole(terminal_table(assault))
    out.print(f"record: {assault.folder / 'attack.json'}", markup=False)
    out.print(f"report: {report}", markup=False)
