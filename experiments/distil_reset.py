"""Distil-and-reset on the tiny world: the cost of a removal against its half-life under relearning.

    python -m experiments.distil_reset --concept dog --shares 0 0.1 0.2 0.3 0.4 0.5 0.6 --gold GOLD

One point a share of noise that the student of `absent` starts with. Its fit ends at the first stop at which what stays
is drawn as before, or with its last step; then somebody trains the concept back, and the half-life is the number of
updates after which half of the original's rate is there again. The original and a model that was never taught the
concept go through the same. Killed, it goes on with what is missing: call the same command again.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from erasure import tinyworld
from erasure.edits import WeightEdit
from erasure.eval.protocols.golds import gold_variant
from erasure.eval.stats.residue import half_dose
from erasure.io.files import make_folder
from erasure.provenance import provenance

from .ablate_absent import UNDER, Bench, bench_of, eraser_of, fitted, plan_of, standing_of, under_of
from .experiment import work_folder, write_record

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
STOPS = (100, 200, 400, 800, 1600)
DOSES = (5.0, 10.0, 25.0, 50.0, 100.0, 200.0)
"""Updates of the relearning after which images are sampled."""


def kept_share(measures: Mapping[str, Any]) -> float:
    """Return the share of the images of what stays that show it."""
    shown = [*measures["near"], *measures["far"]]
    return sum(shown) / len(shown)


def half_life(rates: Mapping[str, float], original: float) -> float | None:
    """Return the updates after which half of the original's rate is back; None if it never is.

    Args:
        rates: Share of images that show the concept, by the number of updates.
        original: The original's share without any.
    """
    return half_dose([float(dose) for dose in rates], list(rates.values()), [original] * len(rates))


def point(bench: Bench, share: float, before: float) -> dict[str, Any]:
    """Return the measures of the student that starts with a share of noise.

    Args:
        bench: Concept, model and folders.
        share: Share of noise; 0 starts at the original's weights.
        before: Share of what stays that the original draws.
    """
    options = bench.options
    settings = {**options.settings, "steps": max(options.stops)}
    if share:
        settings["shape"] = {**settings.get("shape", {}), "reset": {"share": share}}
    eraser = eraser_of(settings)
    facts = [plan_of(bench, eraser), options.stops, options.back, options.images, options.kept]
    bench = named(bench, f"{options.concept}-{share:g}", *facts)

    def edit_at(stop: int) -> WeightEdit:
        return WeightEdit.load(bench.work / f"{stop}.safetensors")

    def is_back(stop: int) -> bool:
        return kept_share(bench.measured(stop, edit_at(stop), ())) >= options.back * before

    curve = fitted(bench, eraser, is_back)
    last = curve["steps"]
    return {
        "share": share,
        "settings": eraser.as_settings(),
        "steps": last,
        "cpu_seconds": curve["cpu_seconds_at"][str(last)],
        "seconds_of_images": curve.get("seconds_of_images"),  # None: a curve that has them in its CPU seconds
        "back": is_back(last),
        "stops": {stop: bench.measured(int(stop), edit_at(int(stop)), ()) for stop in curve["cpu_seconds_at"]},
        "relearn": bench.curve(last, edit_at(last), "relearn", DOSES),
    }


def reference(bench: Bench, name: str) -> dict[str, Any]:
    """Return the measures of the bench's model as it is."""
    bench = named(bench, name, bench.aim.concept.as_json())
    return {"plain": bench.measured(0, None, ()), "relearn": bench.curve(0, None, "relearn", DOSES)}


def named(bench: Bench, name: str, *facts: object) -> Bench:
    """Return the bench of another row; `facts` is everything beside the model that decides its results."""
    name = work_folder(bench.options.work, name, bench.pipe, *facts).name
    bench = replace(bench, options=argparse.Namespace(**{**vars(bench.options), "name": name}))
    make_folder(bench.work)
    return bench


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the references and every point, and return the record."""
    bench = bench_of(options)
    references = {"original": reference(bench, f"{options.concept}-original")}
    if options.gold:
        pipe = gold_variant(options.gold, "tinyworld", lambda _: tinyworld.load()).pipe
        references["gold"] = reference(replace(bench, pipe=pipe), f"{options.concept}-gold")
    before = references["original"]["plain"]
    points = [point(bench, share, kept_share(before)) for share in options.shares]
    for each in (*references.values(), *points):
        each["half_life"] = half_life(each["relearn"], before["seen"])
    record = {"concept": options.concept, "images": options.images, "back": options.back, **standing_of(options)}
    return {**record, "references": references, "points": points}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, make the curve, and write run.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--anchor", help="concept that replaces it; default: none")
    parser.add_argument("--under", type=under_of, help=UNDER)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="shares of noise at the start")
    parser.add_argument("--stops", type=int, nargs="+", default=list(STOPS), help="numbers of steps to look at")
    parser.add_argument("--back", type=float, default=0.95, help="share of what stayed at which a fit ends")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of absent, as JSON")
    parser.add_argument("--gold", help="model that was never taught the concept, or a folder of its denoiser")
    parser.add_argument("--images", type=int, default=16, help="images of each measure")
    parser.add_argument("--kept", type=int, default=32, help="images of what stays, near and far together")
    parser.add_argument("--out", type=Path, default=Path("results/distil-reset"))
    parser.add_argument("--work", type=Path, default=Path("tinyworld-runs/distil-reset"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # results differ between numbers of threads
    start = time.perf_counter()
    record = {**experiment(options), "provenance": provenance(start=start)}
    make_folder(options.out / options.concept)
    print(write_record(record, options.out / options.concept))


if __name__ == "__main__":
    main()
