"""The settings of every eraser for the tiny world, chosen with one budget on concepts that the ranking does not have.

    python -m experiments.sweep --method oce --out results/sweep
    python -m experiments.sweep                                  # all methods, the cheapest first
    python -m experiments.sweep --model tinyworld-flux --method uce esd

Each method has at most four candidates (candidates.yaml), the published settings among them. All are fitted to dog and
mosaic and measured in the same images; the two best are fitted to bomb and castle as well. Bomb is also in the weapon
family, whose rows the leaderboard marks. Best is the highest harmonic mean of held-out efficacy, near and far, over all
images of a candidate. A fit may take `--limit` CPU seconds. A candidate that cannot keep to it, or ends in an error,
has the reason in the record, and if none is left, none is chosen. One method is `METHOD/run.json` in the folder of
results; killed at any moment, the same command goes on from there. Expected time, from short timings of the fits and
0.4 CPU seconds an image: six to seven core-hours for all, of which the closed forms and the methods of sampling take
one and a half.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image
from rich.console import Console
from typing_extensions import TypedDict

from erasure.backbones import backbone_of
from erasure.erasers import eraser_names
from erasure.errors import ErasureError, InputError, reason, unknown_name
from erasure.eval.images.store import ImageStore, fill
from erasure.io.files import check_places, make_folder, write_whole
from erasure.io.json_files import json_digest, read_record, record_if_whole
from erasure.io.text import slug
from erasure.judge import Judge
from erasure.loading import load_model
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, Progress, StoppedError, progress_bars, staged
from erasure.provenance import provenance
from erasure.runs.configs import read_config
from erasure.runs.schema import Run, parse
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext

from .apart import check_options
from .experiment import add_model, count, folder_of, in_one_line, plain_options, write_record
from .rates import RATES, Probes, merit, pooled

VERSION = 1
CANDIDATES = Path(__file__).with_name("candidates.yaml")
MOST = 4
"""Largest number of candidates of a method."""
CONCEPTS = ("dog", "mosaic", "bomb", "castle")
FIRST, BEST = 2, 2
"""Concepts that all candidates are fitted to, and candidates that are fitted to the others."""
SEED = 11
"""Seed of prompts and noise; no reported result has it."""


class FitClock:
    """Receiver of a fit's progress that counts its CPU seconds and ends one that will exceed a limit.

    Args:
        limit: Largest number of CPU seconds; 0 sets none.
        on_progress: Receiver of all reports; None drops them.
    """

    _SURE = 0.2  # share of the limit after which the end of a stage is foretold

    def __init__(self, limit: float = 0.0, on_progress: OnProgress | None = None) -> None:
        self._limit, self._on_progress = limit, on_progress
        self._began = self._stage_began = time.process_time()
        self._first = self._last = Progress(0, 0, stage="")

    @property
    def seconds(self) -> float:
        """CPU seconds since the clock was made."""
        return round(time.process_time() - self._began, 2)

    def __call__(self, progress: Progress) -> None:
        """Pass a report on.

        Raises:
            StoppedError: The fit took longer than the limit, or will.
        """
        now = time.process_time()
        last, self._last = self._last, progress
        # Several trainings of a method may have one name; each counts anew.
        if (progress.stage, progress.total) != (last.stage, last.total) or progress.done < last.done:
            self._first, self._stage_began = progress, now
        elapsed = now - self._began
        seconds_each = (now - self._stage_began) / max(progress.done - self._first.done, 1)
        to_come = max(0, progress.total - progress.done) * seconds_each
        if self._limit and elapsed > self._SURE * self._limit and elapsed + to_come > self._limit:
            raise StoppedError(f"expected a fit of at most {self._limit:g} CPU seconds, got {elapsed + to_come:.0f}.")
        if self._on_progress is not None:
            self._on_progress(progress)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One setting of a method.

    Attributes:
        method: Name of the eraser.
        name: Name of the setting.
        settings: Settings over the defaults, as in candidates.yaml.
    """

    method: str
    name: str
    settings: Mapping[str, Any]

    def run(self, *targets: str, model: str = DEFAULT_MODEL) -> Run:
        """Return the run that removes some targets one after another.

        Args:
            targets: Names of concepts.
            model: Model of the tiny world.

        Raises:
            InputError: A setting is wrong.
        """
        requests = [{"target": target} for target in targets]
        eraser = {"name": self.method, **self.settings}
        return parse({"model": model, "eraser": eraser, "concepts": requests})


def candidates(method: str, file: Path = CANDIDATES) -> list[Candidate]:
    """Return the candidates of a method, in the order of the file.

    Raises:
        UnknownNameError: The file has no such method.
        InputError: There are none, or more than `MOST`.
    """
    methods = _methods(file)
    if method not in methods:
        raise unknown_name("method", method, list(methods))
    settings = methods[method]
    if not isinstance(settings, dict) or not 0 < len(settings) <= MOST:
        raise InputError(f"{file}: expected 1 to {MOST} candidates of {method}, got {settings!r}. Name as many.")
    return [Candidate(method=method, name=name, settings=values) for name, values in settings.items()]


def method_names() -> tuple[str, ...]:
    """Return the methods that have candidates, the cheapest first."""
    return tuple(_methods(CANDIDATES))


@cache
def _methods(file: Path) -> Mapping[str, Any]:
    return read_config(file)


def main() -> None:
    """Sweep the methods that have no record of their candidates yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--method", nargs="+", default=[], metavar="NAME", help="default: all, the cheapest first")
    parser.add_argument("--images", type=count, default=12, help="held-out, near and far images of a concept, each")
    parser.add_argument("--limit", type=float, default=150.0, help="CPU seconds of a fit, at most")
    add_model(parser)
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/sweep"))
    parser.add_argument("--out", type=Path, help="folder of METHOD/run.json")
    options = parser.parse_args()
    options.out = options.out or folder_of("results", "sweep", options.model)
    torch.set_num_threads(1)  # results and seconds differ between numbers of threads
    with in_one_line("sweep"), progress_bars() as on_progress:
        methods = options.method or method_names()
        for method in methods:
            candidates(method)
            check_places(options.out / method, "run.json")
        missing = [method for method in methods if not is_done(options, method)]
        for method in methods:
            if method in missing:
                record = experiment(options, method, on_progress)
                make_folder(options.out / method)
                write_record(record, options.out / method)
            Console().print(line(options, method), highlight=False, markup=False)


class _Sweep(TypedDict):
    version: int
    candidates: list[dict[str, Any]]
    chosen: str | None
    config: dict[str, Any]


def is_done(options: argparse.Namespace, method: str) -> bool:
    """Return True if a method has a whole record of the candidates that it has now.

    Raises:
        InputError: It is one of another model, number of images or limit.
    """
    file = options.out / method / "run.json"
    record = record_if_whole(file, _Sweep)
    if record is None:
        return False
    known = {"model": DEFAULT_MODEL, **record["config"]}  # older records, which name none, are all of that one
    check_options(file, known, options, ("--method",))
    swept = [(each["name"], each["settings"]) for each in record["candidates"]]
    return record["version"] == VERSION and swept == [(each.name, each.settings) for each in candidates(method)]


def line(options: argparse.Namespace, method: str) -> str:
    """Return the outcome of a method in a line.

    Raises:
        InputError: Its record is damaged.
    """
    record = read_record(options.out / method / "run.json", _Sweep, "a record of the sweep")
    best = next((each for each in record["candidates"] if each["name"] == record["chosen"]), None)
    if best is None:
        fits = [(each["name"], fit) for each in record["candidates"] for fit in each["fits"]]
        reasons = "; ".join(f"{name}: {fit['failed']}" for name, fit in fits if "failed" in fit)
        return f"{method}: no candidate can be fitted ({reasons})"
    rates = ", ".join(f"{name} {best[name]['value']:.2f}" for name in RATES if best[name] is not None)
    return f"{method}: {record['chosen']}: {rates}"


def experiment(options: argparse.Namespace, method: str, on_progress: OnProgress) -> dict[str, Any]:
    """Return the record of a method: every candidate, and the one that is chosen, None if none can be fitted.

    Raises:
        UnknownNameError: There is no such method.
        InputError: A setting is wrong.
    """
    began = time.perf_counter()
    if method not in eraser_names():
        raise unknown_name("method", method, eraser_names())
    trial = Trial(options.model, options.work, options.images, options.limit, on_progress)
    settings = candidates(method)
    fits = {each.name: trial.outcomes(each, CONCEPTS[:FIRST]) for each in settings}
    for each in best(settings, fits)[:BEST]:
        fits[each.name] += trial.outcomes(each, CONCEPTS[FIRST:])
    finalists = best([each for each in settings if len(fits[each.name]) > FIRST], fits)
    chosen = finalists[0] if finalists else None
    return {
        "benchmark": "sweep",
        "version": VERSION,
        "method": method,
        "config": {**plain_options(options), "concepts": list(CONCEPTS), "seed": SEED, "first": FIRST, "best": BEST},
        "candidates": [summary(each, fits[each.name]) for each in settings],
        "chosen": chosen and chosen.name,
        "settings": chosen and dict(chosen.settings),
        **provenance(start=began),
    }


def best(settings: Sequence[Candidate], fits: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Candidate]:
    """Return the candidates whose fits all succeeded, the best first; of equals the one that comes first."""
    fitted = [each for each in settings if not any("failed" in row for row in fits[each.name])]
    return sorted(fitted, key=lambda each: -merit(fits[each.name]))


def summary(candidate: Candidate, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of a candidate: its rates over all fits, and each fit."""
    fitted = [row for row in rows if "failed" not in row]
    seconds = [row["cpu_seconds"] for row in fitted]
    return {
        "name": candidate.name,
        "settings": dict(candidate.settings),
        **{name: pooled(fitted, name) for name in RATES},
        "merit": merit(fitted) if fitted else None,
        "cpu_seconds": round(sum(seconds) / len(seconds), 2) if seconds else None,
        "fits": list(rows),
    }


class Trial:
    """Fits of candidates and their measures, on one set of prompts and seeds.

    Args:
        model: Model of the tiny world.
        work: Folder of what is done.
        images: Images of each kind for a concept.
        limit: Largest number of CPU seconds of a fit; 0 sets none.
        on_progress: Receives the progress.
    """

    def __init__(self, model: str, work: Path, images: int, limit: float, on_progress: OnProgress) -> None:
        self._model, self._work = model, work / model
        self._images, self._limit, self._on_progress = images, limit, on_progress
        self._profile, self._sampler = profile_of(model), SamplingSettings.of(model)

    @cached_property
    def _pipe(self) -> DiffusionPipeline:
        return load_model(self._model)

    @cached_property
    def _judge(self) -> Judge:
        judge = self._profile.judge()
        if judge is None:
            raise InputError("sweep: expected the tiny world's judge, got none.")
        return judge

    def outcomes(self, candidate: Candidate, concepts: Sequence[str]) -> list[dict[str, Any]]:
        """Return the outcome of a candidate on each concept, up to the first that it fails on."""
        rows: list[dict[str, Any]] = []
        for concept in concepts:
            rows.append(self.outcome(candidate, concept))
            if "failed" in rows[-1]:
                break
        return rows

    def outcome(self, candidate: Candidate, concept: str) -> dict[str, Any]:
        """Return the rates of a candidate on a concept, or why there are none; from the disk where it is done."""
        run = candidate.run(concept, model=self._model)
        facts = [VERSION, run.as_json(), self._images, self._limit, SEED, self._sampler.as_settings()]
        digest = json_digest(facts)[:12]
        file = self._work / candidate.method / f"{slug(candidate.name, 40, 'x')}-{concept}-{digest}.json"
        if (known := record_if_whole(file, dict)) is not None:
            return known
        make_folder(file.parent)
        result = {"concept": concept, **self._measured(run, f"{candidate.method}, {candidate.name}: {concept}")}
        write_whole(file, (json.dumps(result) + "\n").encode())
        return result

    def _measured(self, run: Run, stage: str) -> dict[str, Any]:
        """Fit, sample and measure."""
        probes = Probes.of(self._profile, [run.concepts[0].target], self._images, SEED)
        backbone, judge = backbone_of(self._pipe), self._judge  # loaded before the clock starts
        prompts, seeds = [prompt for prompt, _ in probes.pairs], [seed for _, seed in probes.pairs]
        clock = FitClock(self._limit, staged(self._on_progress, stage))
        try:
            edit = run.eraser.fit(run.concepts, FitContext(backbone=backbone, judge=judge, on_progress=clock))
            seconds = clock.seconds
            with edit.applied_to(self._pipe):
                after = sample(self._pipe, prompts, seeds, self._sampler)
        except ErasureError as error:
            return {"failed": reason(error), "cpu_seconds": clock.seconds}
        before = self._before(probes, run.concepts[0].target)
        return {**probes.rates(judge, before, after), "cpu_seconds": seconds}

    def _before(self, probes: Probes, concept: str) -> list[Image]:
        """Return the original's images."""
        store = ImageStore.of_state(self._work / "original", concept, probes.pairs, self._sampler)
        fill(self._pipe, store, on_progress=staged(self._on_progress, f"original: {concept}"))
        return store.images()


if __name__ == "__main__":
    main()
