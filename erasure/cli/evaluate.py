"""Commands that measure a model: evaluate, scores, attack, audit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..io.files import check_places
from ..io.processes import is_first, together
from ..progress import progress_bars
from .console import err, out, print_json, print_whole
from .models import existing_device, load_pipe
from .options import MOST_SEED, AsJson, AttentionBy, CommandGroup, Device, LedgerOrModel, Original, Removed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

commands = CommandGroup("Evaluate")


@commands.command()
def evaluate(
    source: LedgerOrModel,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Size of the tinyworld benchmark: quick, standard or full; 80, 2,000 or 8,000 images; default: quick."
        ),
    ] = None,
    benchmark: Annotated[
        str, typer.Option(help="Name of the benchmark: {benchmarks}; all but tinyworld read prompts from --list.")
    ] = "tinyworld",
    lists: Annotated[
        list[Path] | None, typer.Option("--list", metavar="FILE", help="File with the prompts of a public benchmark.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the benchmark: limit=1000.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    gold: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Model trained without the removed concepts, or its denoiser.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(metavar="HUB_ID", help="Image classifier with the classes of a public benchmark.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of scores.json and report.html.")
    ] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on a benchmark, beside the original, a negative prompt and a destroyed model."""
    from erasure.eval.protocols import sources
    from erasure.eval.protocols.evaluate import evaluate as evaluated
    from erasure.eval.protocols.evaluate import write_scores
    from erasure.eval.reports.evaluation_report import terminal_table, write_evaluation_report

    place = existing_device(device)
    edited = sources.source_of(
        source,
        lambda name: load_pipe(name, place, attention),
        removed=_removed(source, removed),
        original=original,
        gold=gold,
    )
    protocol = sources.benchmark_of(benchmark, edited, suite=suite, lists=lists or [], settings=settings or [])
    sampler = sources.sampler_of(protocol, edited)
    folder = to or edited.folder / protocol.short
    check_places(folder, "scores.json", "report.html")
    with progress_bars(err) as on_progress:
        results = evaluated(
            edited.variants,
            protocol,
            sources.metrics_of(protocol, place, classifier),
            sampler=sampler,
            on_progress=on_progress,
            facts={"device": place},
        )
        if not is_first():
            return  # every process has the same numbers
        scores = write_scores(results, folder)
        report = write_evaluation_report(results, folder, edited.title)
    if as_json:
        document = {**results.as_json(), "scores": str(scores), "report": str(report)}
        print_json(document)
        return
    print_whole(terminal_table(results))
    for warning in results.warnings:
        out.print(f"note: {warning}")
    for name, reason in results.skipped.items():
        out.print(f"not computed: {name}: {reason}")
    out.print(f"scores: {scores}")
    out.print(f"report: {report}")


def _removed(source: str, names: list[str] | None) -> Sequence[str]:
    """Return the removed concepts that a command names; else those that an exported folder records."""
    from erasure.pipelines.export.formats import removed_from

    return names or removed_from(Path(source))


@commands.command()
def scores(
    files: Annotated[list[Path], typer.Argument(metavar="FILE ...", help="Files scores.json, or their folders.")],
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Name of a metric, repeatable; default: all that are comparable."),
    ] = None,
    row: Annotated[
        str, typer.Option(help="Variant to compare: erased, gold, original, negative_prompt or destroyed.")
    ] = "erased",
    as_json: AsJson = False,
) -> None:
    """Compare the scores of several evaluations, as far as their protocols agree."""
    from erasure.eval.reports.score_files import compare_scores

    comparison = compare_scores(files, metrics or [], row)
    if as_json:
        print_json(comparison.as_json())
        return
    print_whole(comparison.table())
    for reason, files_apart in comparison.reasons.items():
        out.print(f"not compared: {', '.join(files_apart)}: {reason}")


@commands.command()
def attack(
    source: LedgerOrModel,
    name: Annotated[str, typer.Option("--attack", metavar="NAME", help="Name of the attack: {attacks}.")],
    budget: Annotated[int, typer.Option(min=1, max=1000, help="Most images a prompt.")] = 20,
    prompts: Annotated[int, typer.Option("--prompts", min=1, help="Number of prompts.")] = 40,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Setting of the attack: tokens=8.")
    ] = None,
    removed: Removed = None,
    original: Original = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of prompts, searches and noise.")] = 0,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of attack.json and report.html.")
    ] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Attack a model to bring back the removed concepts, beside the controls that the result is compared with."""
    from erasure.eval.protocols import sources
    from erasure.eval.protocols.red_team import AttackRun, attack_prompts
    from erasure.eval.protocols.variants import ERASED
    from erasure.eval.reports.red_team_report import terminal_table, write_attack_report

    from ..sampling import SamplingSettings

    place = existing_device(device)
    chosen = sources.attack_of(name, settings or [])
    edited = sources.source_of(
        source, lambda model: load_pipe(model, place, attention), removed=_removed(source, removed), original=original
    )
    if edited.variants[0].name != ERASED:
        raise InputError(f"attack: expected a model with removed concepts, got the original {source!r}.")
    folder = to or edited.folder.with_name("attacks") / f"{name}-{edited.variants[0].edit or 'model'}"
    check_places(folder, "attack.json", "report.html")
    judge, second = sources.judges_of(edited, place)
    assault = AttackRun(
        folder=folder,
        erased=edited.variants[0],
        concepts=edited.concepts,
        attack=chosen,
        sampler=SamplingSettings.of(edited.original),
        budget=budget,
        judge=judge,
        second=second,
        model=edited.original,
    )
    with progress_bars(err) as on_progress:
        assault.run(attack_prompts(edited.concepts, prompts, model=edited.original, seed=seed), on_progress)
    report = write_attack_report(assault, edited.title)
    if as_json:
        document = {**assault.as_json(), "record": str(assault.folder / "attack.json"), "report": str(report)}
        print_json(document)
        return
    print_whole(terminal_table(assault))
    out.print(f"record: {assault.folder / 'attack.json'}")
    out.print(f"report: {report}")


@commands.command()
def audit(
    source: LedgerOrModel,
    suite: Annotated[str, typer.Option(help="Size of the audit: quick, standard or full.")] = "quick",
    names: Annotated[
        list[str] | None,
        typer.Option("--probe", metavar="NAME ...", help="Probes in the place of the suite's: {probes}."),
    ] = None,
    golds: Annotated[
        list[str] | None,
        typer.Option("--gold", metavar="MODEL ...", help="Models never taught a removed concept, or their denoisers."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PROBE.KEY=VALUE", help="Setting of a probe: quantise.doses=[8,4]."),
    ] = None,
    removed: Removed = None,
    original: Original = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of prompts, noise and searches.")] = 0,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of audit.json and report.html.")
    ] = None,
    device: Device = "auto",
    attention: AttentionBy = "sdpa",
    as_json: AsJson = False,
) -> None:
    """Audit a model: try every way to bring the removed concepts back, beside models that were never taught them."""
    from erasure.eval.protocols import sources
    from erasure.eval.protocols.audit.plan import audit_of, probes_of
    from erasure.eval.reports.audit_report import terminal_table, write_audit_report

    probes_of(suite, names or [], settings or [])  # what is wrong with them is said before a model is loaded
    place = existing_device(device)

    def load(model: str) -> "DiffusionPipeline":
        return load_pipe(model, place, attention)

    edited = sources.source_of(source, load, removed=_removed(source, removed), original=original)
    planned = audit_of(
        edited,
        load,
        suite=suite,
        names=names or [],
        golds=golds or [],
        settings=settings or [],
        device=place,
        seed=seed,
    )
    folder = to or edited.folder.with_name("audits") / f"{planned.short}-{edited.variants[0].edit or 'model'}"
    check_places(folder, "audit.json", "report.html")
    with together(), progress_bars(err) as on_progress:
        results = planned.run(on_progress)
    if not is_first():
        return  # every process has the same numbers
    record = results.write(folder)
    report = write_audit_report(results, folder)
    if as_json:
        print_json({**results.as_json(), "record": str(record), "report": str(report)})
    else:
        for each in results.concepts:
            print_whole(terminal_table(each))
            out.print(each.verdict)
            reasons: dict[str, list[str]] = {}
            for result in each.probes.values():
                if result.status != "measured":
                    reasons.setdefault(result.reason, []).append(result.name)
            for reason, unmeasured in reasons.items():
                out.print(f"not measured: {', '.join(unmeasured)}: {reason}")
        out.print(f"record: {record}")
        out.print(f"report: {report}")
    if results.failed:
        raise typer.Exit(1)
