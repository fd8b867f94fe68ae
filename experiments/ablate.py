"""The gain of a piece of a trained eraser at equal efficacy, on a short sequence of removals on the tiny world.

    python -m experiments.ablate --piece term/healing
    python -m experiments.ablate                            # every piece that has no record

`experiments/pieces.yaml` says what switches a piece on. Both arms remove cat, gun, car and umbrella, in that order or
reversed, one after another; each fit ends when the judge sees the target in at most 1 - `--stop-at` of 16 images, by
default in none, or with its last step. The kept concepts are then sampled with the same prompts and noise in both arms.
Retention is compared run by run, over orders and seeds: the names of a run share its fits. The null is the difference
that another seed makes without the piece. Seconds are those of the fits, with the images to train on, which the runs
share, apart. Killed, it goes on: call the same command again; pieces with equal arms without them share that arm.
Expected time: four minutes of one core a sequence. `--verdicts` writes the verdicts of all committed records to
configs/verdicts.csv.
"""

import argparse
import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from typing_extensions import TypedDict

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.errors import InputError, unknown_name
from erasure.eval.images.store import ImageStore, fill
from erasure.eval.protocols.plans import PlannedImage, known_images, pairs_of
from erasure.eval.stats.paired import Difference
from erasure.eval.stats.quantiles import student_t
from erasure.io.files import write_whole
from erasure.io.json_files import json_digest, read_record, record_if_whole
from erasure.io.tensor_cache import making_timed
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, staged
from erasure.provenance import provenance
from erasure.runs.configs import read_config
from erasure.runs.overrides import override
from erasure.runs.schema import MeasureSettings, Run, parse
from erasure.tinyworld import vocabulary

from .apart import measure_missing
from .continual import FAR, Removals
from .experiment import count, in_one_line, plain_options

VERSION = 1
TARGETS: Final = ("cat", "gun", "car", "umbrella")
ORDERS: Final[Mapping[str, tuple[str, ...]]] = {"a": TARGETS, "b": TARGETS[::-1]}
_SIBLINGS: Final = {sibling for name in TARGETS for sibling in profile_of(DEFAULT_MODEL).siblings(name)}
NEAR: Final = tuple(name for name in profile_of(DEFAULT_MODEL).kept_beside(TARGETS) if name in _SIBLINGS)
"""Siblings of the targets that no removal takes along."""
ARMS: Final = ("without", "with")
ROOT = Path(__file__).parents[1]
RESULTS, VERDICTS = ROOT / "results" / "ablate", ROOT / "configs" / "verdicts.csv"
PIECES = Path(__file__).with_name("pieces.yaml")

Shares = Mapping[str, float]
"""Share of the images of each name that show it."""


@dataclass(frozen=True, kw_only=True)
class RemovalSequence:
    """One sequence of removals in one arm.

    Attributes:
        arm: "without" or "with" the piece.
        order: Order of the targets.
        seed: Seed of the fits.
    """

    arm: str
    order: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arm}-{self.order}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece and what it is measured with.

    Attributes:
        seam: Extension point, or "loop".
        name: Name of the piece, or of the setting of the loop.
        config: File below configs; its eraser is both arms' base.
        both: Settings of both arms, by path.
        settings: Settings that switch the piece on, by path.
        reason: Obstacle to measuring it; "" without one.
    """

    seam: str
    name: str
    config: str = ""
    both: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""

    @property
    def label(self) -> str:
        """Seam and name, as the command takes it."""
        return f"{self.seam}/{self.name}"

    def folder(self, root: Path) -> Path:
        """Return the folder of its record below another."""
        return root / self.seam / self.name

    def command(self) -> list[str]:
        """Return the arguments that measure it."""
        return ["--piece", self.label]

    def facts(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return the parts of its record that say what is measured.

        Raises:
            InputError: A setting is wrong.
        """
        return {"version": VERSION, "config": {arm: self.run(arm, options.stop_at).as_json() for arm in ARMS}}

    def run(self, arm: str, stop_at: float) -> Run:
        """Return the run of an arm.

        Raises:
            InputError: A setting is wrong.
        """
        config: Mapping[str, Any] = {
            **read_config(VERDICTS.parent / self.config),
            "concepts": [{"target": name} for name in TARGETS],
        }
        until = {"efficacy": stop_at, "images": 16, "image_steps": 12}
        changes = {**self.both, "eraser.shape.until": until, **(self.settings if arm == "with" else {})}
        for path, value in changes.items():
            config = override(config, f"{path}={json.dumps(value)}")
        return parse(config)


def pieces() -> dict[str, Piece]:
    """Return every piece of experiments/pieces.yaml by its label."""
    listed = [
        Piece(seam=seam, name=name, **{{"set": "settings"}.get(key, key): value for key, value in entry.items()})
        for seam, entries in read_config(PIECES).items()
        for name, entry in entries.items()
    ]
    return {piece.label: piece for piece in listed}


def main() -> None:
    """Compare the arms and write run.json of one piece or several, or write the verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--piece", nargs="+", default=[], metavar="SEAM/NAME", help="default: all")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--stop-at", type=float, default=0.95, help="efficacy at which a fit ends")
    parser.add_argument("--images", type=count, default=10, help="images of each concept")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/ablate"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of SEAM/NAME/run.json")
    parser.add_argument("--verdicts", action="store_true", help="write configs/verdicts.csv from the records, no run")
    options = parser.parse_args()
    if options.verdicts:
        with in_one_line("ablate"):
            write_whole(VERDICTS, verdict_table(RESULTS).encode())
        Console().print(f"verdicts: {VERDICTS}")
        return
    measure_missing("ablate", options, measurable, experiment, ("--piece",), lambda record: [record["verdict"]])


def measurable(options: argparse.Namespace) -> list[Piece]:
    """Return the pieces that are asked for and can be measured.

    Raises:
        UnknownNameError: There is no such piece.
        InputError: A piece that is asked for by name cannot be measured.
    """
    known = pieces()
    for label in options.piece:
        if label not in known:
            raise unknown_name("piece", label, known)
        if known[label].reason:
            raise InputError(f"{label}: expected a piece with a verdict, got one that {known[label].reason}.")
    return [known[label] for label in options.piece or known if not known[label].reason]


def experiment(piece: Piece, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Make the sequences that are missing, compare the arms, and return the record."""
    began, facts = time.perf_counter(), piece.facts(options)
    runs = {arm: piece.run(arm, options.stop_at) for arm in ARMS}
    sequences = [
        RemovalSequence(arm=arm, order=order, seed=seed)
        for order in options.orders
        for seed in options.seeds
        for arm in ARMS
    ]
    probes = planned(options.images)
    results = {
        each.name: _result(each, runs[each.arm], probes, options.work, staged(on_progress, piece.label))
        for each in sequences
    }
    return {
        "benchmark": "ablate",
        **facts,
        "seam": piece.seam,
        "piece": piece.name,
        **compared(results, options.orders, options.seeds),
        "sequences": results,
        "near": list(NEAR),
        "far": list(FAR),
        "options": {**plain_options(options), "piece": [piece.label]},
        **provenance(start=began),
    }


def planned(images: int) -> list[PlannedImage]:
    """Return the images of the targets and of the kept concepts."""
    settings, profile = MeasureSettings(seed=1), profile_of(DEFAULT_MODEL)
    forbidden = [word for name in TARGETS for word in (name, *vocabulary.SYNONYMS.get(name, ()))]
    return [
        *(image for name in TARGETS for image in known_images(profile, name, "removed", images, settings, ())),
        *(image for name in NEAR for image in known_images(profile, name, "near", images, settings, forbidden)),
        *(image for name in FAR for image in known_images(profile, name, "far", images, settings, forbidden)),
    ]


def compared(results: Mapping[str, Mapping[str, Any]], orders: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the differences between the arms over orders and seeds, the null's, and the verdict line."""
    pairs = [
        tuple(results[RemovalSequence(arm=arm, order=order, seed=seed).name] for arm in ARMS)
        for order in orders
        for seed in seeds
    ]
    tiers = {}
    for tier, names in (("near", NEAR), ("far", FAR), ("removed", TARGETS)):
        tiers[tier] = over_runs([_mean(after, names) - _mean(before, names) for before, after in pairs])
    null = {
        f"{order}, {seed} to {other}": _mean(results[f"without-{order}-{other}"], NEAR)
        - _mean(results[f"without-{order}-{seed}"], NEAR)
        for order in orders
        for seed, other in combinations(seeds, 2)
    }
    seconds = [sum(pair[i]["seconds"] for pair in pairs) for i in (0, 1)]
    ratio = seconds[1] / seconds[0]
    efficacy = 0.0 - tiers["removed"].value
    worst = [min(min(pair[i]["shares"][name] for name in (*NEAR, *FAR)) for pair in pairs) for i in (0, 1)]
    return {
        "verdict": verdict_line(efficacy, tiers["near"], list(null.values()), ratio),
        "differences": {
            tier: {"value": each.value, "low": each.low, "high": each.high, "n": each.n} for tier, each in tiers.items()
        },
        "null": null,
        "worst": dict(zip(ARMS, worst, strict=True)),
        "time_ratio": ratio,
    }


def over_runs(differences: Sequence[float]) -> Difference:
    """Return the mean of differences of shares, one a pair of runs, with Student's interval over the runs.

    The spread from fit to fit is in it, which images of one fit do not show. One pair leaves the whole range.
    """
    n, value = len(differences), float(np.mean(differences))
    half = student_t(n - 1) * float(np.std(differences, ddof=1)) / n**0.5 if n > 1 else 2.0
    return Difference(value=value, n=n, low=max(-1.0, value - half), high=min(1.0, value + half), confidence=0.95)


def _mean(result: Mapping[str, Any], names: Sequence[str]) -> float:
    """Return the mean share of some names in a sequence's images."""
    return float(np.mean([result["shares"][name] for name in names]))


def verdict_line(efficacy: float, near: Difference, null: Sequence[float], ratio: float) -> str:
    """Return the verdict of a piece: its gain of removal and of near concepts, the null, time, pairs of runs."""
    spread = f"{max(map(abs, null)):.3f}" if null else "–"
    gain = f"near {near.value:+.3f} [{near.low:.3f}, {near.high:.3f}], null {spread}"
    return f"gone {efficacy:+.3f}, {gain}, {ratio:.1f} x time, n = {near.n}"


def verdict_table(results: Path) -> str:
    """Return the verdicts of all records below a folder, as the CSV file that the command reads."""
    rows = [(record["seam"], record["piece"], record["verdict"]) for record in _records(results)]
    rows += [(piece.seam, piece.name, f"not measured: {piece.reason}") for piece in pieces().values() if piece.reason]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("seam", "piece", "verdict"), *sorted(rows)])
    return text.getvalue()


class _Verdict(TypedDict):
    seam: str
    piece: str
    verdict: str


def _records(results: Path) -> Iterator[Mapping[str, Any]]:
    for file in sorted(results.glob("*/*/run.json")):
        yield read_record(file, _Verdict, "a record of a piece")


def _result(
    sequence: RemovalSequence, run: Run, probes: Sequence[PlannedImage], work: Path, on_progress: OnProgress | None
) -> dict[str, Any]:
    """Return the shares of a sequence's images that show their name, and its seconds; kept once it is complete."""
    facts = [VERSION, run.as_json(), [[probe.prompt, probe.seed] for probe in probes]]
    folder = work / f"{sequence.order}-{sequence.seed}-{json_digest(facts)[:12]}"
    file = folder / "result.json"
    if (known := record_if_whole(file, dict)) is not None:
        return known
    pipe = tinyworld.load()
    ordered = {concept.target: concept for concept in run.concepts}
    removals = Removals(
        folder=folder / "removals", pipe=pipe, run=replace(run, seed=sequence.seed), memory=work / "memory"
    )
    times = folder / "seconds.json"
    seconds: dict[str, dict[str, float]] = record_if_whole(times, dict) or {}
    for name in ORDERS[sequence.order][len(removals) :]:
        began = time.process_time()
        with making_timed() as making:
            removals.add(ordered[name], staged(on_progress, f"{sequence.name}: removing {name}"))
        seconds[name] = {"fit": time.process_time() - began - making.seconds, "images": making.seconds}
        write_whole(times, json.dumps(seconds).encode())
    settings = (run.measure or MeasureSettings()).sampling(DEFAULT_MODEL)
    store = ImageStore.of_state(folder / "images", "after", pairs_of(probes), settings)
    with removals.applied(len(removals)):
        fill(pipe, store, on_progress=staged(on_progress, f"{sequence.name}: images"))
    reading = tinyworld.load_oracle().read(store.images())
    seen: dict[str, list[bool]] = {}
    for i, probe in enumerate(probes):
        seen.setdefault(probe.name, []).append(bool(reading.sees(probe.name)[i]))
    result = {
        "arm": sequence.arm,
        "order": sequence.order,
        "seed": sequence.seed,
        "model": backbone_of(pipe).fingerprint(),
        "seconds": round(sum(each["fit"] for each in seconds.values()), 2),
        "seconds_of_images": round(sum(each["images"] for each in seconds.values()), 2),
        "shares": {name: float(np.mean(values)) for name, values in seen.items()},
    }
    write_whole(file, json.dumps(result).encode())
    return result


if __name__ == "__main__":
    main()
