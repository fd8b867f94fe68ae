"""Actions of a visitor as plain functions, shared by the page and the API."""

import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from erasure.concept import Concept, Kind
from erasure.erasers import make_eraser
from erasure.errors import InputError
from erasure.guidance.a_star import AStar
from erasure.io.files import make_folder, write_whole
from erasure.ledger import Entry, Ledger, present_settings
from erasure.progress import staged
from erasure.runs import configs, removal, schema
from erasure.sampling import Pair, SamplingSettings, sample_pairs

from ..eval.images.attention_maps import attention_sheet, trace_attention
from ..eval.judges.readings import read
from ..eval.protocols import sources
from ..eval.protocols.audit.plan import audit_of
from ..eval.protocols.evaluate import evaluate, write_scores
from ..eval.protocols.ledger_measures import LedgerMeasures
from ..eval.reports.audit_report import write_audit_report
from ..eval.reports.evaluation_report import write_evaluation_report
from ..eval.reports.ledger_report import RemovalRow, removal_rows, write_report
from . import limits
from .forms import offered
from .jobs import Track
from .results import Attended, BeforeAfter, Report
from .sessions import Session
from .studio import Studio

_STEP_MEASURE = schema.MeasureSettings(per_concept=10, near=16, far=20, health=False)
"""Measure of the erosion curve: few images after each step, with wide intervals."""
_SHOWN_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A removal request.

    Attributes:
        concepts: Target concepts, in this order.
        method: Name of the eraser.
        settings: Settings of the eraser, by name.
        anchor: Anchor concept that replaces the targets; "" is the unconditional prompt.
        preserve: Concepts that must not change; None is all others that the profile knows, else the nearest ones.
        kind: Kind of the targets; None is that of the profile, else object.
    """

    concepts: Sequence[str]
    method: str = "uce"
    settings: Mapping[str, Any] = field(default_factory=dict)
    anchor: str = ""
    preserve: Sequence[str] | None = None
    kind: Kind | None = None


def erase(studio: Studio, session: Session, wish: Wish, track: Track) -> list[str]:
    """Remove concepts, each as an entry of the session's ledger, and return their names.

    Raises:
        InputError: A concept cannot be removed; entries of the concepts before it stay.
        StoppedError: The job was stopped; finished entries stay.
    """
    run = _run(studio, wish)
    with track.holding(studio.lock):
        ledger = session.open_ledger(studio.pipe, studio.name)
        run, already = removal.remaining(run, ledger)
        if not run.concepts:
            raise InputError(f"erase: expected concepts not removed yet, got {', '.join(already)}. Undo it first.")
        track.say("fitting")
        removed = removal.remove(run, studio.pipe, ledger, on_progress=track.report)
        return [concept.target for entry in _each(removed, track) for concept in entry.concepts]


def _each(entries: Iterator[Entry], track: Track) -> Iterator[Entry]:
    """Yield the entries, and stop between two if the job was stopped."""
    for entry in entries:
        yield entry
        track.check()


def _run(studio: Studio, wish: Wish) -> schema.Run:
    targets = limits.names("concepts", wish.concepts)
    if not targets:
        raise InputError("concepts: expected at least one, got none. Choose or type a concept.")
    shared: dict[str, Any] = {"anchor": limits.name("becomes", wish.anchor)}
    if wish.kind is not None:
        shared["kind"] = wish.kind
    if wish.preserve is not None:
        shared["preserve"] = limits.names("keep", wish.preserve, limits.KEPT)
    suggested: dict[str, dict[str, Any]] = {}
    if wish.preserve is None and not studio.known:  # for each as if it were the only one
        suggested = {name: {"preserve": studio.to_keep([name], kind=wish.kind or "object")} for name in targets}
    settings = limits.settings(wish.settings, offered(wish.method, studio.name))
    return schema.parse(
        {
            "model": studio.name,
            "eraser": {"name": wish.method, **configs.starting_settings(wish.method, studio.name), **settings},
            "concepts": [{"target": name, **shared, **suggested.get(name, {})} for name in targets],
            "measure": None,
        }
    )


def compare(
    studio: Studio, session: Session, pairs: Sequence[Pair], sampler: SamplingSettings, track: Track
) -> BeforeAfter:
    """Sample from the original and the edited model, judge both, and store the result in the session.

    Raises:
        StoppedError: The job was stopped.
    """
    with track.holding(studio.lock):
        before = studio.originals(pairs, sampler, staged(track.report, "sampling from the original"))
        ledger = session.ledger()
        standing = _removed(ledger)
        after = before
        if ledger is not None and standing:
            track.say("applying the removals")
            with ledger.applied_to(studio.pipe):
                after = sample_pairs(
                    studio.pipe, pairs, sampler, staged(track.report, "sampling from the edited model")
                )
        track.say("judging the images")
        judge = studio.judge()
        kept = [name for concept in standing for name in concept.preserve]
        cut = studio.cut(list(dict.fromkeys(prompt for prompt, _ in pairs)))
        prompts = [prompt for prompt, _ in pairs]
        seen = read(judge, prompts, before, after, standing, profile=studio.profile, kept=kept)
    session.compared = BeforeAfter(
        pairs=tuple(pairs),
        before=tuple(before),
        after=tuple(after),
        seen=tuple(seen),
        removed=tuple(concept.target for concept in standing),
        judge="" if judge is None else judge.name,
        cut=cut,
        entries=session.standing(),
    )
    return session.compared


def first_look(studio: Studio, pairs: Sequence[Pair], track: Track) -> BeforeAfter:
    """Sample from the original alone, before any removal."""
    with track.holding(studio.lock):
        before = studio.originals(pairs, studio.sampler, staged(track.report, "sampling"))
    return BeforeAfter(pairs=tuple(pairs), before=tuple(before), after=None, seen=((),) * len(pairs))


def undo(session: Session, entry: object) -> Entry:
    """Undo an entry of the ledger.

    Raises:
        InputError: The ledger is empty.
        LedgerError: The entry does not exist or was undone before.
    """
    return _ledger(session, "undo").undo(limits.name("undo", entry))


def verify(studio: Studio, session: Session, track: Track) -> list[str]:
    """Return the mismatches of the session's ledger, one line each.

    Raises:
        InputError: The ledger is empty.
    """
    ledger = _ledger(session, "verify")
    with track.holding(studio.lock):
        track.say("checking files, replay and base")
        return ledger.verify(studio.pipe)


def measure_steps(studio: Studio, session: Session, track: Track) -> list[RemovalRow]:
    """Measure after each standing entry that was not measured before.

    Raises:
        InputError: The ledger is empty, or the model has no judge.
        StoppedError: The job was stopped; finished measurements stay.
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
    """Return the standing entries with their measurements so far."""
    ledger = session.ledger()
    return [] if ledger is None else removal_rows(LedgerMeasures(ledger, studio.pipe, _STEP_MEASURE))


def attend(
    studio: Studio, session: Session, prompt: str, concepts: Sequence[str], seed: int, alpha: float, track: Track
) -> Attended:
    """Sample a prompt without and with A-STAR from the edited model, and record the attention maps of its words.

    Raises:
        InputError: The prompt does not contain a word.
        StoppedError: The job was stopped.
    """
    (text,) = limits.prompts([prompt])
    named = tuple(limits.names("words", concepts, 4))
    if not named:
        raise InputError("words: expected at least one, got none. Name words of the prompt, separated by commas.")
    guidance = AStar(concepts=named, alpha=alpha)
    with track.holding(studio.lock), _standing(studio, session):
        entries = session.standing()
        track.say("sampling without A-STAR", 0, 2)
        plain = trace_attention(studio.pipe, text, named, seed, studio.sampler)
        track.say("sampling with A-STAR", 1, 2)
        guided = trace_attention(studio.pipe, text, named, seed, studio.sampler, guidance)
    sheet = attention_sheet([("plain", plain), ("A-STAR", guided)], named, _SHOWN_STEPS)
    session.attended = Attended(prompt=text, names=named, plain=plain, guided=guided, sheet=sheet, entries=entries)
    return session.attended


def measure(studio: Studio, session: Session, images: int, track: Track) -> Report:
    """Evaluate the edited model by the quick suite, beside the original, a negative prompt and a destroyed model.

    Raises:
        InputError: No entry stands, or the model has no judge.
        StoppedError: The job was stopped; its images are used by the next one.
    """
    ledger = _ledger(session, "measure")
    if not ledger.standing:
        raise InputError("measure: expected a standing removal, got none. Erase a concept first.")
    with track.holding(studio.lock):
        of_model = _suite if studio.profile.data.benchmark else _ledger_report
        session.measured = of_model(studio, session, ledger, images, track)
    return session.measured


def _suite(studio: Studio, session: Session, ledger: Ledger, images: int, track: Track) -> Report:
    source = sources.source_of(str(session.ledger_folder), lambda name: studio.pipe)
    benchmark = sources.benchmark_of(studio.profile.data.benchmark, source, settings=[f"total={images}"])
    results = evaluate(
        source.variants,
        benchmark,
        sources.metrics_of(benchmark, studio.device),
        sampler=sources.sampler_of(benchmark, source),
        on_progress=track.report,
        facts={"device": studio.device},
    )
    track.say("writing the report")
    scores = results.scores
    metrics = dict.fromkeys(metric for row in scores.values() for metric in row)
    table = [("", *(name.replace("_", " ") for name in scores))]
    for metric in metrics:
        cells = (f"{row[metric].value:.3f}" if metric in row else "–" for row in scores.values())
        table.append((metric.replace("_", " "), *cells))
    folder = session.folder / "measure"
    title = f"Removed: {', '.join(source.removed)}"
    return Report(
        table=tuple(table),
        page=write_evaluation_report(results, folder, title),
        scores=write_scores(results, folder),
        entries=tuple(entry.id for entry in ledger.standing),
        notes=tuple(results.warnings),
    )


def _ledger_report(studio: Studio, session: Session, ledger: Ledger, images: int, track: Track) -> Report:
    """Measure as `erasure remove` does after an entry, for a model without a benchmark."""
    start = time.perf_counter()
    settings = schema.MeasureSettings(per_concept=max(1, images // 4), near=images // 2, far=0)
    record = LedgerMeasures(ledger, studio.pipe, settings, track.report)
    if record.skipped is not None:
        raise InputError(f"measure: expected a judge, got {record.skipped}. Put CLIP weights there.")
    last = ledger.standing[-1]
    measured = record.measure(last)
    eraser = make_eraser(last.method, **present_settings(last.method, last.settings))
    run = schema.Run(model=studio.name, eraser=eraser, concepts=last.concepts, seed=last.seed, measure=settings)
    page = write_report(record, removal.facts(run, device=studio.device, start=start))
    scores = session.folder / "measure" / "scores.json"
    make_folder(scores.parent)
    write_whole(scores, (json.dumps(measured, indent=1, ensure_ascii=False) + "\n").encode())
    rows = [
        (name, _rate(rates["before"]), _rate(rates["efficacy"])) for name, rates in (measured or {})["removed"].items()
    ]
    table = [("share of images without the concept", "original", "edited"), *rows]
    entries = tuple(entry.id for entry in ledger.standing)
    return Report(table=tuple(table), page=page, scores=scores, entries=entries)


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{rate['value']:.3f} of {rate['n']}"


def audit(studio: Studio, session: Session, concept: str, track: Track) -> Report:
    """Audit one removed concept by the quick suite, and keep the record in the ledger, for the model card.

    Raises:
        InputError: No entry stands, the concept is not removed, or the judge does not know it.
        StoppedError: The job was stopped; what was measured is used by the next one.
    """
    ledger = _ledger(session, "audit")
    targets = [each.target for each in _removed(ledger)]
    if concept not in targets:
        raise InputError(
            f"audit: expected a concept that stands removed, got {concept!r}."
            f" {'Choose one of ' + ', '.join(targets) if targets else 'Erase one first'}."
        )
    with track.holding(studio.lock):
        source = sources.source_of(str(session.ledger_folder), lambda name: studio.pipe)
        planned = replace(audit_of(source, lambda name: studio.pipe, device=studio.device), aimed=(concept,))
        results = planned.run(track.report)
        track.say("writing the report")
        folder = session.ledger_folder / "audits" / f"{planned.suite}-{ledger.state()}"
        record = results.write(folder)
        [audited] = results.concepts
        silent = [each for each in audited.probes.values() if each.status != "measured"]
        session.audited = Report(
            table=(("verdict",), (audited.verdict,)),
            page=write_audit_report(results, folder),
            scores=record,
            entries=tuple(entry.id for entry in ledger.standing),
            notes=tuple(f"not measured: {each.name}: {each.reason}" for each in silent),
        )
    return session.audited


def ledger_json(session: Session) -> list[dict[str, Any]]:
    """Return the entries of the session's ledger, undone ones included, as plain data."""
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
def _standing(studio: Studio, session: Session) -> Generator[None]:
    ledger = session.ledger()
    if ledger is None:
        yield
    else:
        with ledger.applied_to(studio.pipe):
            yield


def _removed(ledger: Ledger | None) -> list[Concept]:
    return [] if ledger is None else [concept for entry in ledger.standing for concept in entry.concepts]


def _ledger(session: Session, action: str) -> Ledger:
    ledger = session.ledger()
    if ledger is None:
        raise InputError(f"{action}: expected a removal, got none. Erase a concept first.")
    return ledger
