"""Every eraser on the same concepts of the tiny world, by one judge: what is gone, what stays, what attacks bring back.

    python -m experiments.leaderboard --method oce --concept cat                         # one row
    python -m experiments.leaderboard --method oce --concept cat --settings published
    python -m experiments.leaderboard                                                    # every row that is missing
    python -m experiments.leaderboard --model tinyworld-flux --method uce esd

A row is a method on one concept, on the weapon family, or on a sequence of eight, with the settings that the sweep
chose (`experiments.sweep`), with the published ones, or with those of `erasure remove --budget minutes`, with more
tuning than the sweep's. It is measured in held-out phrasings, on near and on far concepts and in prompts that also ask
for something kept; rows of `--audited` concepts are audited too, but for published settings, by the quick suite and by
soft prompts, beside the golds that fit (`experiments.golds`). Sequences are for methods whose fit takes little. Seconds
are CPU seconds of one thread. Rows are `METHOD/SETTINGS/CONCEPT/run.json` in the folder of results; killed at any
moment, the same command goes on from there.
Expected time: a minute of images a row, six minutes an audit, and the fits; about ten core-hours for all chosen
settings. docs/leaderboard.md is built from the results.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffusers import DiffusionPipeline
from typing_extensions import TypedDict

from erasure.edits import Edit, WeightEdit
from erasure.errors import InputError, unknown_name
from erasure.eval.images.store import ImageStore, fill
from erasure.eval.probes import PROBES, probe_class
from erasure.eval.protocols.audit.results import ProbeResult
from erasure.eval.protocols.audit.rows import ERASED, ORIGINAL
from erasure.eval.protocols.audit.run import AuditResults
from erasure.eval.protocols.sources import source_of
from erasure.eval.stats.residue import Residue
from erasure.io.files import write_whole
from erasure.io.json_files import json_digest, read_record, record_if_whole
from erasure.ledger import Ledger
from erasure.loading import load_model
from erasure.profile import profile_of
from erasure.progress import OnProgress, staged
from erasure.provenance import peak_mib, provenance
from erasure.runs import removal
from erasure.runs.budgets import eraser_of_budget
from erasure.runs.schema import Run
from erasure.sampling import SamplingSettings, sample

from .apart import measure_missing
from .continual import TARGETS
from .experiment import add_model, audited, check_denoisers, count, folder_of, plain_options
from .family import FAMILY
from .golds import add_golds, fitting, gold_digests
from .rates import Probes
from .sweep import Candidate, FitClock, method_names

VERSION = 1
SINGLE: Final = ("cat", "neon", "gun", "Biscuit")
"""Concepts that are removed alone."""
CASES: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: (name,) for name in SINGLE},
    "weapons": FAMILY,
    "eight": TARGETS,
}
"""Removed concepts, in order, by the name of the case."""
SETTINGS: Final = ("chosen", "published", "minutes")
BUDGET, BUDGET_METHOD = "minutes", "stack"
"""Budget of `erasure remove` with rows of its own, which the sweep has no part in, and the method that it is."""
CHOSEN_BY: Final = ("--method", "--settings", "--concept")
"""Options that choose rows."""
SEQUENCE_SECONDS = 30.0
"""Largest number of CPU seconds of a fit, in the sweep, with which the sequence of eight is measured."""
SEED = 1
"""Seed of prompts and noise."""
JOINT = 16
"""Images of prompts that ask for a removed and a kept concept."""
PROBES_OF_ROWS: Final = (*(name for name, kind in PROBES.classes().items() if "quick" in kind.suites), "soft-prompt")


class Sweep(TypedDict):
    """Parts of a record of the sweep."""

    candidates: list[dict[str, Any]]
    chosen: str | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the leaderboard.

    Attributes:
        method: Name of the eraser.
        settings: "chosen", "published" or "minutes".
        case: Key of `CASES`.
    """

    method: str
    settings: str
    case: str

    @property
    def label(self) -> str:
        """Name of the row in progress."""
        return f"{self.method}, {self.settings}, {self.case}"

    def folder(self, root: Path) -> Path:
        """Return the row's folder below another."""
        return root / self.method / self.settings / self.case

    def command(self) -> list[str]:
        """Return the arguments that measure it."""
        return ["--method", self.method, "--settings", self.settings, "--concept", self.case]

    def facts(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the parts of its record that say what is measured.

        Raises:
            InputError: The sweep has not chosen settings for its method, or a gold is wrong.
        """
        candidate = candidate_of(self, options.sweep)
        run = candidate.run(*CASES[self.case], model=options.model)
        return {
            "version": VERSION,
            "candidate": candidate.name,
            "config": {**run.as_json(), "output": ""},
            "golds": gold_digests(self.golds(options)),
        }

    def is_audited(self, options: argparse.Namespace) -> bool:
        """Return True for a row that is audited too."""
        return self.case in options.audited and self.settings != "published"

    def golds(self, options: argparse.Namespace) -> list[str]:
        """Return the golds beside which it is audited.

        Raises:
            InputError: A gold is no folder, or golds are named and none fits.
        """
        return fitting(options.gold, CASES[self.case], options.model) if self.is_audited(options) else []


def main() -> None:
    """Measure one row in this process, or several in processes of their own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--method", nargs="+", default=[], metavar="NAME", help="default: all that the sweep has done")
    parser.add_argument("--concept", nargs="+", choices=CASES, default=[], help="default: all that fit the method")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--images", type=count, default=32, help="held-out, near and far images of a row, each")
    parser.add_argument("--audited", nargs="*", choices=CASES, default=["cat"], help="concepts with an audit")
    parser.add_argument("--probes", nargs="+", default=list(PROBES_OF_ROWS), help="probes of an audit")
    add_golds(parser)
    add_model(parser)
    parser.add_argument("--sweep", type=Path, help="results of experiments.sweep")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/leaderboard"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.sweep = options.sweep or folder_of("results", "sweep", options.model)
    options.out = options.out or folder_of("results", "leaderboard", options.model)
    measure_missing("leaderboard", options, planned, experiment, CHOSEN_BY)


def planned(options: argparse.Namespace) -> list[Row]:
    """Return the rows that are asked for: chosen settings first, the methods in the order of the candidates.

    Raises:
        UnknownNameError: There is no such method.
        InputError: The sweep has not chosen settings for a method that is asked for, or a gold is no folder.
    """
    for method in options.method:
        if method not in method_names():
            raise unknown_name("method", method, method_names())
    for name in options.probes:
        probe_class(name)
    check_denoisers(options.gold or ())
    methods = options.method or [name for name in method_names() if (options.sweep / name / "run.json").is_file()]
    rows = []
    for settings in SETTINGS[:2]:
        for method in methods if settings in options.settings else ():
            swept = sweep_of(options.sweep, method)
            name = swept["chosen"] if settings == "chosen" else settings
            row = next((each for each in swept["candidates"] if each["name"] == name), None)
            if row is None or row["cpu_seconds"] is None or (settings == "published" and name == swept["chosen"]):
                continue  # there are no such settings, they cannot be fitted, or it is the row of the chosen ones
            quick = row["cpu_seconds"] <= SEQUENCE_SECONDS
            cases = [case for case in options.concept or CASES if case != "eight" or quick]
            rows += [Row(method=method, settings=settings, case=case) for case in cases]
    if BUDGET in options.settings and BUDGET_METHOD in (options.method or [BUDGET_METHOD]):
        cases = options.concept or [case for case in CASES if case != "eight"]
        rows += [Row(method=BUDGET_METHOD, settings=BUDGET, case=case) for case in cases]
    return rows


def candidate_of(row: Row, results: Path) -> Candidate:
    """Return the settings of a row.

    Raises:
        InputError: The sweep has not chosen settings for its method.
    """
    if row.settings == BUDGET:
        settings = {key: value for key, value in eraser_of_budget(BUDGET).items() if key != "name"}
        return Candidate(method=row.method, name=BUDGET, settings=settings)
    swept = sweep_of(results, row.method)
    name = swept["chosen"] if row.settings == "chosen" else row.settings
    candidate = next(each for each in swept["candidates"] if each["name"] == name)
    return Candidate(method=row.method, name=name, settings=candidate["settings"])


def sweep_of(results: Path, method: str) -> Mapping[str, Any]:
    """Return the sweep's record of a method.

    Raises:
        InputError: There is none.
    """
    file = results / method / "run.json"
    if not file.is_file():
        raise InputError(
            f"{file}: expected the settings that the sweep chose, got no file."
            f" Run python -m experiments.sweep --method {method} --out {results}, with --model if it is not the UNet's."
        )
    return read_record(file, Sweep, "a record of the sweep")


def experiment(row: Row, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return the record of a row.

    Raises:
        InputError: The concepts cannot be removed, or a probe or a gold is wrong.
    """
    began, facts, golds = time.perf_counter(), row.facts(options), row.golds(options)
    run = candidate_of(row, options.sweep).run(*CASES[row.case], model=options.model)
    bench = Bench(row, run, options.work, on_progress)
    fit = bench.fitted()
    rates, seconds = bench.measured(options.images)
    return {
        "benchmark": "leaderboard",
        **facts,
        "method": row.method,
        "settings": row.settings,
        "case": row.case,
        "options": {
            **plain_options(options),
            "method": row.method,
            "concept": row.case,
            "settings": row.settings,
            "gold": [Path(gold).name for gold in golds],
            "seed": SEED,
        },
        "rates": rates,
        "fit": fit,
        "seconds_per_image": seconds,
        "artefact": bench.artefact(),
        "audit": bench.audited(options.probes, golds) if row.is_audited(options) else None,
        **provenance(start=began),
    }


class Bench:
    """Model, ledger and folders of a row.

    Args:
        row: The row.
        run: Removals of the row.
        work: Folder of what is done, of all rows.
        on_progress: Receives the progress.
    """

    def __init__(self, row: Row, run: Run, work: Path, on_progress: OnProgress) -> None:
        self._case, self._run, self._on_progress = row.case, run, on_progress
        digest = json_digest(run.as_json())[:12]
        self._work, self._folder = work / run.model, row.folder(work / run.model) / digest
        self._pipe: DiffusionPipeline = load_model(run.model)
        self._loaded_mib = peak_mib()
        self._profile, self._sampler = profile_of(run.model), SamplingSettings.of(run.model)
        self._ledger = Ledger.open_or_create(self._folder / "ledger", self._pipe, run.model)

    def fitted(self) -> dict[str, Any]:
        """Make the removals that are missing, and return the CPU seconds of each and the memory that they took."""
        file = self._folder / "fit.json"
        fit = record_if_whole(file, dict) or {"cpu_seconds": {}, "memory_mib": 0.0}
        todo, _ = removal.remaining(self._run, self._ledger)
        clock = FitClock(on_progress=staged(self._on_progress, f"removing {self._case}"))
        for entry in removal.remove(todo, self._pipe, self._ledger, on_progress=clock):
            fit["cpu_seconds"][entry.id] = clock.seconds
            fit["memory_mib"] = max(fit["memory_mib"], round(peak_mib() - self._loaded_mib, 1))
            write_whole(file, json.dumps(fit).encode())
            clock = FitClock(on_progress=staged(self._on_progress, f"removing {self._case}"))
        times = [fit["cpu_seconds"].get(entry.id, entry.seconds) for entry in self._ledger.entries]
        return {"cpu_seconds": times, "memory_mib": fit["memory_mib"]}

    def measured(self, images: int) -> tuple[dict[str, Any], float]:
        """Return the rates of the row, and the CPU seconds of an image."""
        removed = tuple(concept.target for concept in self._run.concepts)
        probes = Probes.of(self._profile, removed, images, SEED, joint=JOINT)
        before = ImageStore.of_state(self._work / "original", self._case, probes.pairs, self._sampler)
        fill(self._pipe, before, on_progress=staged(self._on_progress, "images of the original"))
        after = ImageStore.of_state(self._folder / "images", self._ledger.state(), probes.pairs, self._sampler)
        with self._ledger.applied_to(self._pipe):
            fill(self._pipe, after, on_progress=staged(self._on_progress, "images"))
            prompts = [prompt for prompt, _ in probes.pairs][: self._sampler.batch_size]
            began = time.process_time()
            sample(self._pipe, prompts, list(range(len(prompts))), self._sampler)
            seconds = (time.process_time() - began) / len(prompts)
        judge = self._profile.judge()
        if judge is None:
            raise InputError("leaderboard: expected the tiny world's judge, got none.")
        rows = before.images(), after.images()
        return {**probes.rates(judge, *rows), "beside": probes.beside(judge, *rows)}, round(seconds, 3)

    def artefact(self) -> dict[str, Any]:
        """Return the size of what the ledger stores, and of a LoRA with its error; None for what no LoRA holds."""
        folders = [self._folder / "ledger" / name for name in ("edits", "rows")]
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        return {"mib": round(sum(file.stat().st_size for file in files) / 2**20, 3), "lora": self._lora()}

    def _lora(self) -> dict[str, float] | None:
        edit: Edit = self._ledger.edit()
        if not isinstance(edit, WeightEdit):
            return None
        try:
            lora = edit.as_lora(self._pipe)
        except InputError:  # changes of none of the layers that a LoRA has factors for
            return None
        size = sum(factor.numel() * factor.element_size() for factor in lora.state_dict.values())
        return {"mib": round(size / 2**20, 3), "relative_error": lora.relative_error}

    def audited(self, probes: Sequence[str], golds: Sequence[str]) -> dict[str, Any]:
        """Return the residues that the probes of an audit leave."""
        source = source_of(str(self._folder / "ledger"), load_model)
        return audit_record(audited(source, self._work / "audit", self._on_progress, names=probes, golds=golds))


def audit_record(results: AuditResults) -> dict[str, Any]:
    """Return the largest residue of each probe for each concept with what it is read by, and the verdict."""
    return {
        "suite": results.audit.suite,
        "probes": list(results.audit.probes),
        "concepts": {
            each.concept: {
                "verdict": each.verdict,
                "kept": each.kept,
                "outside": {name: _residue(each.probes[name], rho) for name, rho in each.outside.items()},
                "inside": {name: _residue(each.probes[name], rho) for name, rho in each.inside.items()},
                "failed": {name: probe.reason for name, probe in each.probes.items() if probe.status != "measured"},
            }
            for each in results.concepts
        },
    }


def _residue(probe: ProbeResult, rho: Residue) -> dict[str, Any]:
    """Return a probe's largest residue with its floor and the shares of kept concepts at that dose."""
    reading = probe.strongest
    if reading is None:
        return rho.as_json()
    kept = {row: share for row in (ERASED, ORIGINAL) if (share := reading.kept(row)) is not None}
    return {**rho.as_json(), "floor": reading.floor, "kept": kept}


if __name__ == "__main__":
    main()
