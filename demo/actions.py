"""What a visitor can do, as plain functions: the page and the API call the same."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasure.concept import Concept, Kind
from erasure.erasers import make_eraser
from erasure.errors import InputError
from erasure.guidance.a_star import AStar
from erasure.io.files import make_folder, write_whole
from erasure.ledger import Entry, Ledger
from erasure.progress import staged
from erasure.runs import configs, removal, schema
from erasure.sampling import Pair, SamplingSettings, sample_pairs

from ..eval.images.attention_maps import attention_sheet, trace_attention
from ..eval.judges.readings import read
from ..eval.protocols import sources
from ..eval.protocols.evaluate import evaluate, write_scores
from ..eval.protocols.ledger_measures import LedgerMeasures
from ..eval.reports.evaluation_report import write_evaluation_report
from ..eval.reports.ledger_report import RemovalRow, removal_rows, write_report
from . import limits
from .forms import offered
from .jobs import Track
from .sessions import Session
from .studio import Attended, Comparison, Studio

_STEP_MEASURE = schema.MeasureSettings(per_concept=10, near=16, far=20)
"""Of the erosion curve: a glance after each step, with the intervals of a glance."""
_SHOWN_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What someone wants removed.

    Attributes:
        concepts: The targets, one after another.
        method: The eraser's name.
        settings: Of the eraser.
        anchor: What they become; "" is nothing.
        preserve: What must stay; None is all else that the tiny world knows, elsewhere what is nearest.
        kind: Of the targets; None is what the tiny world says, else object.
    """

    concepts: Sequence[str]
    method: str = "uce"
    settings: Mapping[str, Any] = field(default_factory=dict)
    anchor: str = ""
    preserve: Sequence[str] | None = None
    kind: Kind | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A measure.

    Attributes:
        table: A header and rows, as texts.
        page: The report.
        scores: The numbers as JSON.
        notes: What a reader must know.
    """

    table: tuple[tuple[str, ...], ...]
    page: Path
    scores: Path
    notes: tuple[str, ...] = ()


def erase(studio: Studio, session: Session, wish: Wish, track: Track) -> list[str]:
    """Remove concepts, each an entry of the session's ledger, and return their names.

    Raises:
        InputError: The wish cannot be carried out; what it asked for first may stand already.
        StoppedError: It was stopped; what was finished before stands.
    """
    run = _run(studio, wish)
    with track.holding(studio.lock):
        ledger = session.open_ledger(studio.pipe, studio.name)
        run, already = removal.remaining(run, ledger)
        if not run.concepts:
            raise InputError(f"erase: expected something that is still there, got {', '.join(already)}. Undo it first.")
        track.say("fitting")
        removed = removal.remove(run, studio.pipe, ledger, on_progress=track.report)
        return [concept.target for entry in _each(removed, track) for concept in entry.concepts]


def _each(entries: Iterator[Entry], track: Track) -> Iterator[Entry]:
    """Give the entries, and stop between two."""
    for entry in entries:
        yield entry
        track.check()


def _run(studio: Studio, wish: Wish) -> schema.Run:
    targets = limits.names("concepts", wish.concepts)
    if not targets:
        raise InputError("concepts: expected at least one, got none. Choose or type what to remove.")
    shared: dict[str, Any] = {"anchor": limits.name("becomes", wish.anchor)}
    if wish.kind is not None:
        shared["kind"] = wish.kind
    if wish.preserve is not None:
        shared["preserve"] = limits.names("keep", wish.preserve, limits.KEPT)
    elif not studio.known:
        shared["preserve"] = studio.to_keep(targets, kind=wish.kind or "object")
    settings = limits.settings(wish.settings, [setting.name for setting in offered(wish.method, studio.name)])
    return schema.parse(
        {
            "model": studio.name,
            "eraser": {"name": wish.method, **configs.starting_settings(wish.method, studio.name), **settings},
            "concepts": [{"target": target, **shared} for target in targets],
            "measure": None,
        }
    )


def compare(
    studio: Studio, session: Session, pairs: Sequence[Pair], sampler: SamplingSettings, track: Track
) -> Comparison:
    """Draw by the original and by what stands, and have both read; the session keeps it.

    Raises:
        StoppedError: It was stopped.
    """
    with track.holding(studio.lock):
        before = studio.originals(pairs, sampler, staged(track.report, "drawing the original"))
        ledger = session.ledger()
        standing = _removed(ledger)
        after = before
        if ledger is not None and standing:
            track.say("putting the removals together")
            with ledger.applied_to(studio.pipe):
                after = sample_pairs(studio.pipe, pairs, sampler, staged(track.report, "drawing what is left"))
        track.say("reading the pictures")
        judge = studio.judge()
        kept = [name for concept in standing for name in concept.preserve]
        cut = studio.cut(list(dict.fromkeys(prompt for prompt, _ in pairs)))
        prompts = [prompt for prompt, _ in pairs]
        seen = read(judge, prompts, before, after, standing, profile=studio.profile, kept=kept)
    session.compared = Comparison(
        pairs=tuple(pairs),
        before=tuple(before),
        after=tuple(after),
        seen=tuple(seen),
        removed=tuple(concept.target for concept in standing),
        judge="" if judge is None else judge.name,
        cut=cut,
    )
    return session.compared


def first_look(studio: Studio, pairs: Sequence[Pair], track: Track) -> Comparison:
    """Draw by the original alone: what is there before anything is removed."""
    with track.holding(studio.lock):
        before = studio.originals(pairs, studio.sampler, staged(track.report, "drawing"))
    return Comparison(pairs=tuple(pairs), before=tuple(before), after=None, seen=((),) * len(pairs))


def undo(session: Session, entry: str) -> Entry:
    """Take a removal back.

    Raises:
        InputError: Nothing was removed.
        LedgerError: It was undone already, or there is none.
    """
    return _ledger(session, "undo").undo(limits.name("undo", entry))


def verify(studio: Studio, session: Session, track: Track) -> list[str]:
    """Return what is wrong with the session's ledger, a line each.

    Raises:
        InputError: Nothing was removed.
    """
    ledger = _ledger(session, "verify")
    with track.holding(studio.lock):
        track.say("checking files, replay and base")
        return ledger.verify(studio.pipe)


def measure_steps(studio: Studio, session: Session, track: Track) -> list[RemovalRow]:
    """Measure after each removal that stands and was not measured yet.

    Raises:
        InputError: Nothing was removed, or nobody can judge the pictures.
        StoppedError: It was stopped; what was measured stays.
    """
    ledger = _ledger(session, "measure")
    with track.holding(studio.lock):
        record = LedgerMeasures(ledger, studio.pipe, _STEP_MEASURE, track.report)
        if record.skipped is not None:
            raise InputError(f"measure: expected a judge, got {record.skipped}. Put CLIP weights there.")
        for entry in ledger.standing:
            if record.measured(entry) is None:
                record.measure(entry)
        return removal_rows(record)


def measured_steps(studio: Studio, session: Session) -> list[RemovalRow]:
    """Return the removals that stand with what has been measured after each so far."""
    ledger = session.ledger()
    return [] if ledger is None else removal_rows(LedgerMeasures(ledger, studio.pipe, _STEP_MEASURE))


def attend(
    studio: Studio, session: Session, prompt: str, concepts: Sequence[str], seed: int, alpha: float, track: Track
) -> Attended:
    """Draw a prompt without and with A-STAR by what stands, and keep where its words look.

    Raises:
        InputError: The prompt does not hold a concept.
        StoppedError: It was stopped.
    """
    (text,) = limits.prompts([prompt])
    named = tuple(limits.names("words", concepts, 4))
    if not named:
        raise InputError("words: expected at least one, got none. Name words of the prompt, with commas.")
    guidance = AStar(concepts=named, alpha=alpha)
    with track.holding(studio.lock), _standing(studio, session):
        track.say("drawing without A-STAR", 0, 2)
        plain = trace_attention(studio.pipe, text, named, seed, studio.sampler)
        track.say("drawing with A-STAR", 1, 2)
        guided = trace_attention(studio.pipe, text, named, seed, studio.sampler, guidance)
    sheet = attention_sheet([("plain", plain), ("A-STAR", guided)], named, _SHOWN_STEPS)
    session.attended = Attended(prompt=text, names=named, plain=plain, guided=guided, sheet=sheet)
    return session.attended


def measure(studio: Studio, session: Session, pictures: int, track: Track) -> Report:
    """Run the quick suite on what stands, beside the original, a negative prompt and a destroyed model.

    Raises:
        InputError: Nothing stands, or nobody can judge the pictures.
        StoppedError: It was stopped; the pictures that were made are used next time.
    """
    ledger = _ledger(session, "measure")
    if not ledger.standing:
        raise InputError("measure: expected a removal that stands, got none. Erase a concept first.")
    with track.holding(studio.lock):
        return (_suite if studio.profile.data.benchmark else _ledger_report)(studio, session, ledger, pictures, track)


def _suite(studio: Studio, session: Session, ledger: Ledger, pictures: int, track: Track) -> Report:
    source = sources.source_of(str(session.ledger_folder), lambda name: studio.pipe)
    benchmark = sources.benchmark_of(studio.profile.data.benchmark, source, settings=[f"total={pictures}"])
    found = evaluate(
        source.rows,
        benchmark,
        sources.metrics_of(benchmark, studio.device),
        sampler=sources.sampler_of(benchmark, source),
        on_progress=track.report,
        facts={"device": studio.device},
    )
    track.say("writing the report")
    scores = found.scores
    metrics = dict.fromkeys(metric for row in scores.values() for metric in row)
    table = [("", *(name.replace("_", " ") for name in scores))]
    for metric in metrics:
        cells = (f"{row[metric].value:.3f}" if metric in row else "–" for row in scores.values())
        table.append((metric.replace("_", " "), *cells))
    folder = session.folder / "measure"
    title = f"Removed: {', '.join(source.removed)}"
    return Report(
        table=tuple(table),
        page=write_evaluation_report(found, folder, title),
        scores=write_scores(found, folder),
        notes=tuple(found.warnings),
    )


def _ledger_report(studio: Studio, session: Session, ledger: Ledger, pictures: int, track: Track) -> Report:
    """Measure as `erasure remove` does after its last removal, where there is no benchmark of the model's own words."""
    start = time.perf_counter()
    settings = schema.MeasureSettings(per_concept=max(1, pictures // 4), near=pictures // 2, far=0)
    record = LedgerMeasures(ledger, studio.pipe, settings, track.report)
    if record.skipped is not None:
        raise InputError(f"measure: expected a judge, got {record.skipped}. Put CLIP weights there.")
    last = ledger.standing[-1]
    measured = record.measure(last)
    eraser = make_eraser(last.method, **last.settings)
    run = schema.Run(model=studio.name, eraser=eraser, concepts=last.concepts, seed=last.seed, measure=settings)
    page = write_report(record, removal.facts(run, device=studio.device, start=start))
    scores = session.folder / "measure" / "scores.json"
    make_folder(scores.parent)
    write_whole(scores, (json.dumps(measured, indent=1, ensure_ascii=False) + "\n").encode())
    rows = [
        (name, _rate(gone["before"]), _rate(gone["efficacy"])) for name, gone in (measured or {})["removed"].items()
    ]
    table = [("share of pictures without it", "original", "now"), *rows]
    return Report(table=tuple(table), page=page, scores=scores)


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{rate['value']:.3f} of {rate['n']}"


def ledger_json(session: Session) -> list[dict[str, Any]]:
    """Return the session's removals, those undone as well, as plain data."""
    ledger = session.ledger()
    if ledger is None:
        return []
    return [
        {
            "id": entry.id,
            "removed": [concept.target for concept in entry.concepts],
            "becomes": [concept.anchor for concept in entry.concepts],
            "method": entry.method,
            "state": entry.state,
            "approximate": entry.id in ledger.approximate,
            "time": entry.time,
            "seconds": entry.seconds,
        }
        for entry in ledger.entries
    ]


@contextmanager
def _standing(studio: Studio, session: Session) -> Iterator[None]:
    ledger = session.ledger()
    if ledger is None:
        yield
    else:
        with ledger.applied_to(studio.pipe):
            yield


def _removed(ledger: Ledger | None) -> list[Concept]:
    return [] if ledger is None else [concept for entry in ledger.standing for concept in entry.concepts]


def _ledger(session: Session, what: str) -> Ledger:
    ledger = session.ledger()
    if ledger is None:
        raise InputError(f"{what}: expected a removal, got none so far. Erase a concept first.")
    return ledger
