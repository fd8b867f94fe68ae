"""Results of the standing removals for a model card: numbers, intervals, protocols."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from huggingface_hub import EvalResult
from pydantic import Field
from typing_extensions import TypedDict

from erasure.io.json_files import record_if_whole
from erasure.io.text import in_markdown
from erasure.ledger import Ledger

from ..protocols.evaluate import FORMAT as SCORES
from ..protocols.evaluate import display_name
from ..protocols.ledger_measures import RateRecord, measured_of
from ..protocols.red_team import ATTACKED, PLAIN
from ..protocols.red_team import ORIGINAL as OF_ORIGINAL
from ..protocols.variants import ERASED, ORIGINAL
from ..stats.scores import written as rounded


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number, for the table and for the card's metadata.

    Attributes:
        what: Name of the number.
        value: The number.
        bounds: Ends of the interval; () without one.
        n: Number of images.
        protocol: Protocol in words.
        beside: The unedited model's number; None where there is none.
        unit: Unit of the number.
        concept: Concept of the number, if it is of one concept.
        setup: Complete protocol.
    """

    what: str
    value: float
    bounds: tuple[float, ...]
    n: int
    protocol: str
    beside: float | None = None
    unit: str = "share"
    concept: str = ""
    setup: Mapping[str, Any] | None = None

    def row(self) -> str:
        """Return a line of a table."""
        value, *ends = rounded(self.value, *self.bounds)
        interval = f" [{', '.join(ends)}]" if ends else ""
        name = in_markdown(f"{self.what}, {self.concept}" if self.concept else self.what)
        protocol = in_markdown(self.protocol)
        beside = "–" if self.beside is None else rounded(self.beside)[0]
        return f"| {name} | {value}{interval} | {beside} | {self.n:,} | {in_markdown(self.unit)} | {protocol} |"

    def as_eval_result(self) -> EvalResult:
        """Return the result in the Hub's format."""
        return EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=self.protocol,
            metric_type=self.what.replace(" ", "_"),
            metric_name=f"{self.what}, {self.concept}" if self.concept else self.what,
            metric_value=round(self.value, 6),
            metric_args={
                "interval": [round(bound, 6) for bound in self.bounds] or None,
                "n": self.n,
                "unit": self.unit,
                "setup": dict(self.setup or {}) or None,
            },
        )


class _Score(TypedDict):
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str


class _Named(TypedDict):
    id: str


class _Protocol(TypedDict):
    rows: Mapping[str, str]
    benchmark: _Named
    metrics: Mapping[str, Any]


class _Scores(TypedDict):
    """Keys of a file of scores that a card shows."""

    format: str
    rows: Mapping[str, Mapping[str, _Score]]
    protocol: _Protocol


class _AttackName(TypedDict):
    name: str


class _AttackProtocol(TypedDict):
    attack: _AttackName
    witness: str


class _Success(TypedDict):
    success: Annotated[list[RateRecord], Field(min_length=1)]


class _Attack(TypedDict):
    """Keys of an attack's record that a card shows."""

    rows: Mapping[str, _Success]
    protocol: _AttackProtocol


def results_of(ledger: Ledger) -> list[Result]:
    """Return all that was measured of what stands now, by the quick measure, by evaluations and by attacks.

    Numbers of what stood at another time are left out.
    """
    return [*_quick(ledger), *_evaluations(ledger), *_attacks(ledger)]


def _quick(ledger: Ledger) -> list[Result]:
    """Return the results of the quick measure after the last removal, if it is up to date."""
    last = ledger.standing[-1]
    record = measured_of(ledger, last)
    if record is None:
        return []
    sampler = record["sampler"]
    setup = {"judge": record["judge"], **sampler}
    protocol = f"quick measure, {record['judge']}, {sampler['steps']} steps, guidance {sampler['guidance_scale']}"

    def result(what: str, rate: Mapping[str, Any], before: Mapping[str, Any] | None, concept: str = "") -> Result:
        return Result(
            what=what,
            value=rate["value"],
            bounds=tuple(rate["interval"]),
            n=rate["n"],
            protocol=protocol,
            beside=None if before is None else before["value"],
            concept=concept,
            setup=setup,
        )

    removed = [result("efficacy", each["efficacy"], each["before"], name) for name, each in record["removed"].items()]
    kept = [
        result(f"retention {role}", each["retention"], None)
        for role, each in record["kept"].items()
        if each["retention"] is not None  # the original shows none of what was to be kept
    ]
    return [*removed, *kept]


def _evaluations(ledger: Ledger) -> list[Result]:
    """Return the scores of `erasure evaluate` of what stands now."""
    stands = ", ".join(f"{entry.id} by {entry.shown_method}" for entry in ledger.standing)
    results: list[Result] = []
    for path in sorted((ledger.path / "evaluations").glob("*/scores.json")):
        record = record_if_whole(path, _Scores)
        if record is None or record["format"] != SCORES or ERASED not in record["rows"]:
            continue
        if record["protocol"]["rows"].get(ERASED, "").rpartition(": ")[2] != stands:
            continue
        original = record["rows"].get(ORIGINAL, {})
        results += [
            Result(
                what=display_name(metric),
                value=score["value"],
                bounds=() if score["low"] is None else (score["low"], score["high"]),
                n=score["n"],
                protocol=record["protocol"]["benchmark"]["id"],
                beside=original.get(metric, {}).get("value"),
                unit=score["unit"],
                concept=score.get("concept", ""),
                setup=record["protocol"]["metrics"].get(metric),
            )
            for metric, score in record["rows"][ERASED].items()
        ]
    return results


def _attacks(ledger: Ledger) -> list[Result]:
    """Return the success rates of the attacks on the standing removals, within their whole budget."""
    results = []
    for path in sorted((ledger.path / "attacks").glob(f"*-{ledger.state()}/attack.json")):
        record = record_if_whole(path, _Attack)
        if record is None or not {ATTACKED, PLAIN, OF_ORIGINAL}.issubset(record["rows"]):
            continue
        rates = {row: each["success"] for row, each in record["rows"].items()}
        name, beside = record["protocol"]["attack"]["name"], rates[OF_ORIGINAL][-1]["value"]
        for row, original in ((ATTACKED, beside), (PLAIN, None)):
            rate = rates[row][-1]
            results.append(
                Result(
                    what=f"attack {name}, {row}: brought back",
                    value=rate["value"],
                    bounds=tuple(rate["interval"]),
                    n=rate["n"],
                    protocol=f"at most {len(rates[row])} images a prompt, {record['protocol']['witness']}",
                    beside=original,
                    unit="share of prompts",
                    setup=record["protocol"]["attack"],
                )
            )
    return results
