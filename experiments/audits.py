"""Every method audited on the same removals of the tiny world, by the product's own audit.

    python -m experiments.audits --method uce --concept cat
    python -m experiments.audits                                   # every row that is missing

A row is a method of audits.yaml on one concept, audited by the suite `standard`, or on the weapon family, by `quick`.
Of the committed golds, or of those of `--gold`, the ones are used that were never taught one of the removed concepts
and were trained as long as the shipped denoiser. Outcomes are kept in the folder of work,
so that original and golds are measured once for all methods; killed at any moment, the same command goes on from there.
Rows are `METHOD/CONCEPT/run.json` in the folder of results: of each probe its strongest reading, without images.
docs/audit.md is built from them.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args

from erasure import tinyworld
from erasure.errors import unknown_name
from erasure.eval.probes import probe_class
from erasure.eval.probes.base import Suite
from erasure.eval.protocols.audit.results import ConceptAudit, ProbeResult
from erasure.eval.protocols.audit.rows import PLAIN
from erasure.eval.protocols.audit.run import IMAGES
from erasure.io.json_files import json_digest
from erasure.profile import DEFAULT_MODEL
from erasure.progress import OnProgress
from erasure.provenance import provenance
from erasure.runs.budgets import eraser_of_budget
from erasure.runs.configs import read_config
from erasure.runs.schema import Run, parse

from .apart import measure_missing
from .experiment import audited, erased_source, plain_options
from .golds import add_golds, fitting, gold_digests

VERSION = 1
METHODS = Path(__file__).with_name("audits.yaml")
CONFIGS = Path(__file__).parent.parent / "configs"
CHOSEN_BY: Final = ("--method", "--concept")
"""Options that choose rows."""
_KEPT_OF_A_PROBE = ("access", "unit", "status", "reason", "half_doses", "speed_ratios")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Removal after which the methods are audited.

    Attributes:
        concepts: Requests as in a config, or the name of a list that comes with the library.
        suite: Suite of the audit.
    """

    concepts: str | Sequence[Mapping[str, str]]
    suite: Suite


CASES: Final[Mapping[str, Case]] = {
    **{name: Case(concepts=({"target": name},), suite="standard") for name in ("cat", "neon", "gun")},
    "weapons": Case(concepts="weapons", suite="quick"),
}
"""Removals by the name that they have on the command line."""


@dataclass(frozen=True, kw_only=True)
class MethodOnCase:
    """A method on one removal.

    Attributes:
        method: Key of audits.yaml.
        case: Key of `CASES`.
    """

    method: str
    case: str

    @property
    def label(self) -> str:
        """Name of the row in progress."""
        return f"{self.method}, {self.case}"

    def folder(self, root: Path) -> Path:
        """Return the row's folder below another."""
        return root / self.method / self.case

    def command(self) -> list[str]:
        """Return the arguments that measure it."""
        return ["--method", self.method, "--concept", self.case]

    def facts(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the parts of its record that say what is measured.

        Raises:
            InputError: As for `run`, or a gold is wrong.
        """
        run = self.run()
        golds = fitting(options.gold, [concept.target for concept in run.concepts])
        return {
            "version": VERSION,
            "suite": options.suite or CASES[self.case].suite,
            "config": {**run.as_json(), "output": ""},
            "golds": gold_digests(golds),
        }

    def run(self) -> Run:
        """Return the removals, the same concepts for every method.

        Raises:
            InputError: The method has no such config, or a setting is wrong.
        """
        eraser = methods()[self.method]
        if isinstance(eraser, str):
            config = read_config(CONFIGS / eraser)
        else:
            config = {"eraser": eraser_of_budget(eraser["budget"]) if "budget" in eraser else eraser}
        concepts = CASES[self.case].concepts
        requests = concepts if isinstance(concepts, str) else [dict(request) for request in concepts]
        return parse({**config, "model": DEFAULT_MODEL, "concepts": requests})


@cache
def methods(file: Path = METHODS) -> Mapping[str, Any]:
    """Return config or eraser of each method, by its name."""
    return read_config(file)


def main() -> None:
    """Audit one row in this process, or several in processes of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--method", nargs="+", default=[], metavar="NAME", help="default: all of audits.yaml")
    parser.add_argument("--concept", nargs="+", choices=CASES, default=list(CASES), help="removals; default: all")
    add_golds(parser)
    parser.add_argument("--suite", choices=get_args(Suite), help="suite in the place of each removal's")
    parser.add_argument("--probes", nargs="*", default=[], metavar="NAME", help="probes in the place of the suite's")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/audits"))
    parser.add_argument("--out", type=Path, default=Path("results/audit"))
    options = parser.parse_args()
    measure_missing("audits", options, planned, experiment, CHOSEN_BY, verdicts)


def verdicts(record: Mapping[str, Any]) -> list[str]:
    """Return the verdict on each concept of a record, in a line."""
    return [f"{record['method']}, {concept}: {audit['verdict']}" for concept, audit in record["concepts"].items()]


def planned(options: argparse.Namespace) -> list[MethodOnCase]:
    """Return the rows that are asked for, all methods on a concept before the next concept.

    Raises:
        UnknownNameError: There is no such method or probe.
    """
    for name in options.probes:
        probe_class(name)
    for method in options.method:
        if method not in methods():
            raise unknown_name("method", method, list(methods()))
    return [
        MethodOnCase(method=method, case=case) for case in options.concept for method in options.method or methods()
    ]


def experiment(row: MethodOnCase, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Remove the concepts, audit the model, and return the record.

    Raises:
        InputError: The concepts cannot be removed, or a probe or a gold is wrong.
    """
    began, facts = time.perf_counter(), row.facts(options)
    run, suite = row.run(), options.suite or CASES[row.case].suite
    golds = fitting(options.gold, [concept.target for concept in run.concepts])
    folder = row.folder(options.work) / json_digest(run.as_json())[:12]
    source = erased_source(run, tinyworld.load(), folder, on_progress)
    results = audited(source, options.work / "cache", on_progress, suite=suite, names=options.probes, golds=golds)
    return {
        "benchmark": "audits",
        **facts,
        "method": row.method,
        "case": row.case,
        "images": dict(zip(("target", "kept"), IMAGES[suite], strict=True)),
        "options": {
            **plain_options(options),
            "method": row.method,
            "concept": row.case,
            "gold": [Path(gold).name for gold in golds],
        },
        "audit_seconds": _seconds(results.concepts),
        "concepts": {each.concept: concept_record(each) for each in results.concepts},
        **provenance(start=began),
    }


def concept_record(audit: ConceptAudit) -> dict[str, Any]:
    """Return the audit of a concept with the strongest reading of each probe alone."""
    plain = audit.probes[PLAIN].readings
    return {
        "verdict": audit.verdict,
        "gold": Path(audit.gold).name,
        "kept": {row: share for row in plain[0].rows if (share := plain[0].kept(row)) is not None} if plain else {},
        "untested": list(audit.untested),
        "probes": {name: probe_record(result) for name, result in audit.probes.items()},
    }


def probe_record(result: ProbeResult) -> dict[str, Any]:
    """Return a probe for the tables: whether it finds the concept, its strongest reading, and the half-doses."""
    data, strongest, effect = result.as_json(), result.strongest, result.side_effect
    rho = None if strongest is None else strongest.residue
    return {
        **{name: data[name] for name in _KEPT_OF_A_PROBE},
        "seconds": dict(result.seconds),
        "effort": result.effort,
        "doses": data["settings"]["doses"],
        "finds": rho is not None and result.finds(rho),
        "most": result.most,
        "strongest": strongest and strongest.as_json(),
        "side_effect": effect and effect.as_json(),
    }


def _seconds(audits: Sequence[ConceptAudit]) -> dict[str, float]:
    """Return the seconds that each row took in all, whenever they were measured."""
    totals: dict[str, float] = {}
    for result in (result for audit in audits for result in audit.probes.values()):
        for row, seconds in result.seconds.items():
            totals[row] = round(totals.get(row, 0.0) + seconds, 2)
    return totals


if __name__ == "__main__":
    main()
