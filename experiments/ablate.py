"""The gain of a piece of a trained eraser at equal efficacy, on a short sequence of removals on the tiny world.

    python -m experiments.ablate term healing --config configs/esd/sequence-tinyworld.yaml
        --set eraser.shape.keep='{"healing": 2.0}' --out results/ablate/healing

Both arms remove cat, gun, car and umbrella, in that order or reversed, one after another; each fit ends when the judge
sees the target in at most 1 - `--stop-at` of its images, or with its last step. The kept concepts are then sampled with
the same prompts and noise in both arms. Retention is compared by name, over orders and seeds. Killed, it goes on: call
the same command again. `--verdicts` writes the verdicts of all committed records to configs/verdicts.csv.
"""

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.errors import ErasureError, InputError
from erasure.eval.images.store import ImageStore, fill
from erasure.eval.protocols.plans import PlannedImage, known_images, pairs_of
from erasure.eval.stats.paired import paired_bootstrap
from erasure.io.files import make_folder, write_whole
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, progress_bars, staged
from erasure.provenance import provenance
from erasure.runs.configs import read_config
from erasure.runs.overrides import override
from erasure.runs.schema import MeasureSettings, Run, parse
from erasure.runs.verdicts import SEAMS
from erasure.tinyworld import vocabulary

from .continual import FAR, NEAR, Removals
from .experiment import plain_options, write_record

VERSION = 1
TARGETS: Final = ("cat", "gun", "car", "umbrella")
ORDERS: Final[Mapping[str, tuple[str, ...]]] = {"a": TARGETS, "b": TARGETS[::-1]}
ARMS: Final = ("without", "with")
ROOT = Path(__file__).parents[1]
RESULTS, VERDICTS = ROOT / "results" / "ablate", ROOT / "configs" / "verdicts.csv"

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


def main() -> None:
    """Compare the arms and write run.json, or write the verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("seam", nargs="?", choices=SEAMS, help="extension point of the piece, or loop")
    parser.add_argument("piece", nargs="?", help="name of the piece, or of the setting of the loop")
    parser.add_argument("--config", type=Path, help="config of `erasure remove`; its eraser is both arms' base")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings with the piece")
    parser.add_argument("--both", action="append", default=[], metavar="KEY=VALUE", help="settings of both arms")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stop-at", type=float, default=0.95, help="efficacy at which a fit ends")
    parser.add_argument("--images", type=int, default=30, help="images of each concept")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/ablate"))
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--verdicts", action="store_true", help="write configs/verdicts.csv from the records, no run")
    options = parser.parse_args()
    try:
        if options.verdicts:
            write_whole(VERDICTS, verdict_table(RESULTS).encode())
            Console().print(f"verdicts: {VERDICTS}")
            return
        record = experiment(options)
        make_folder(options.out)
        write_record(record, options.out)
    except ErasureError as error:
        sys.exit(f"ablate: {error}")
    Console().print(f"{record['seam']} {record['piece']}: {record['verdict']}", highlight=False)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Make the sequences that are missing, compare the arms, and return the record.

    Raises:
        InputError: An argument is missing, or nothing is set in the arm with the piece.
    """
    began = time.perf_counter()
    for name in ("seam", "piece", "config", "out"):
        if getattr(options, name) is None:
            raise InputError(f"{name}: expected a value, got none. See --help.")
    if not options.set:
        raise InputError("--set: expected the settings that switch the piece on, got none. See --help.")
    runs = {arm: _run_of(options, arm) for arm in ARMS}
    sequences = [
        RemovalSequence(arm=arm, order=order, seed=seed)
        for order in options.orders
        for seed in options.seeds
        for arm in ARMS
    ]
    probes = planned(options.images)
    results: dict[str, dict[str, Any]] = {}
    with progress_bars() as on_progress:
        for sequence in sequences:
            results[sequence.name] = _result(sequence, runs[sequence.arm], probes, options.work, on_progress)
    comparison = compared(results, options.orders, options.seeds)
    return {
        "benchmark": "ablate",
        "version": VERSION,
        "seam": options.seam,
        "piece": options.piece,
        **comparison,
        "sequences": results,
        "near": list(NEAR),
        "far": list(FAR),
        "config": {arm: run.as_json() for arm, run in runs.items()},
        "options": plain_options(options),
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
    """Return the differences between the arms over orders, seeds and names, and the verdict line."""
    pairs = [
        tuple(results[RemovalSequence(arm=arm, order=order, seed=seed).name] for arm in ARMS)
        for order in orders
        for seed in seeds
    ]
    tiers = {}
    for tier, names in (("near", NEAR), ("far", FAR), ("removed", TARGETS)):
        values = [[pair[i]["shares"][name] for pair in pairs for name in names] for i in (0, 1)]
        tiers[tier] = paired_bootstrap(values[0], values[1])
    seconds = [sum(pair[i]["seconds"] for pair in pairs) for i in (0, 1)]
    ratio = seconds[1] / seconds[0]
    near = tiers["near"]
    worst = [min(min(pair[i]["shares"][name] for name in (*NEAR, *FAR)) for pair in pairs) for i in (0, 1)]
    return {
        "verdict": verdict_line(near.value, near.low, near.high, ratio, len(pairs)),
        "differences": {
            tier: {"value": each.value, "low": each.low, "high": each.high, "n": each.n} for tier, each in tiers.items()
        },
        "worst": dict(zip(ARMS, worst, strict=True)),
        "time_ratio": ratio,
    }


def verdict_line(value: float, low: float, high: float, ratio: float, n: int) -> str:
    """Return the verdict of a piece: the difference of the retention of near concepts, the factor of time, the runs."""
    return f"near {value:+.3f} [{low:.3f}, {high:.3f}], {ratio:.1f} x time, n = {n}"


def verdict_table(results: Path) -> str:
    """Return the verdicts of all records below a folder, as the CSV file that the command reads."""
    rows = [(record["seam"], record["piece"], record["verdict"]) for record in _records(results)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("seam", "piece", "verdict"), *sorted(rows)])
    return text.getvalue()


def _records(results: Path) -> Iterator[Mapping[str, Any]]:
    for file in sorted(results.glob("*/run.json")):
        yield json.loads(file.read_text(encoding="utf-8"))


def _run_of(options: argparse.Namespace, arm: str) -> Run:
    """Return the run of an arm."""
    config: Mapping[str, Any] = {**read_config(options.config), "concepts": [{"target": name} for name in TARGETS]}
    until = f"eraser.shape.until={json.dumps({'efficacy': options.stop_at})}"
    for assignment in (*options.both, until, *(options.set if arm == "with" else ())):
        config = override(config, assignment)
    return parse(config)


def _result(
    sequence: RemovalSequence, run: Run, probes: Sequence[PlannedImage], work: Path, on_progress: OnProgress
) -> dict[str, Any]:
    """Return the shares of a sequence's images that show their name, and its seconds; kept once it is complete."""
    folder = work / sequence.name
    file = folder / "result.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    pipe = tinyworld.load()
    ordered = {concept.target: concept for concept in run.concepts}
    removals = Removals(
        folder=folder / "removals", pipe=pipe, run=replace(run, seed=sequence.seed), memory=work / "memory"
    )
    targets = ORDERS[sequence.order]
    for name in targets[len(removals) :]:
        removals.add(ordered[name], staged(on_progress, f"{sequence.name}: removing {name}"))
    entries = removals.ledger.entries
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
        "seconds": round(sum(float(entry.seconds or 0) for entry in entries), 2),
        "shares": {name: float(np.mean(values)) for name, values in seen.items()},
    }
    write_whole(file, json.dumps(result).encode())
    return result


if __name__ == "__main__":
    main()
