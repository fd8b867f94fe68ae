"""A training step of DUGE against an ordinary diffusion training step of the same weights, on the tiny world.

Each case runs in a process of its own, so that its peak of memory is its own: the resident set above what the process
held before the first step.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers.duge import DUGE
from erasure.profile import profile_of
from erasure.progress import Progress
from erasure.runs.configs import read_config
from erasure.training.context import FitContext
from erasure.training.finetune import Optimisation, finetune

from .record import arguments, spread, write_run

VERSION = 1
SMALL = {"memory_size": 16, "target_images": 8, "image_steps": 2, "probe_every": 0, "max_similarity": 1.0}
CONCEPT = Concept(target="cat", preserve=("dog", "house"))


def main() -> None:
    """Time each case, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed")
    parser.add_argument("--toy", action="store_true", help="few steps, to try the script")
    parser.add_argument("--case", choices=cases(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        options.steps = 2
    if options.case:
        print(json.dumps(measured(options.case, options.steps)))
        return
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    for case in cases():
        command = [sys.executable, "-m", "benchmarks.duge_step", "--case", case, "--steps", str(options.steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        plain = next((r for r in results if r["case"] == f"training, {result['trained']}"), result)
        ratios = {f"times_{key}": result[key] / plain[key] for key in ("seconds", "peak_mib")}
        results.append({**result, **ratios})
        print(
            f"{case}: {result['seconds']:.3f} s a step, {result['peak_mib']:.0f} MiB,"
            f" {ratios['times_seconds']:.2f} times"
        )
    write_run(options, name="duge-step", version=VERSION, results=results, started=started, torch=torch)


def cases() -> dict[str, Mapping[str, Any]]:
    """Return the settings of each case by name."""
    file = Path(__file__).parents[1] / "configs" / "duge" / "specified-tinyworld.yaml"
    specified = {key: value for key, value in read_config(file)["eraser"].items() if key != "name"}
    return {
        "training, cross": {"trained": "cross"},
        "training, kv": {"trained": "kv"},
        "as specified": specified,
        "default": {},
    }


def measured(case: str, steps: int) -> dict[str, Any]:
    """Return the seconds of a step and the peak of memory of one case."""
    duge = DUGE(**{**profile_of("tinyworld").settings("duge"), **cases()[case], **SMALL, "steps": steps + 1})
    backbone = backbone_of(tinyworld.load())
    moments: list[float] = []
    before = 0

    def note(step: Progress) -> None:
        nonlocal before
        if step.stage == "fit":
            moments.append(time.perf_counter())
        else:
            before = resident()  # images are made before the first update

    if case.startswith("training"):
        plain, context = duge, FitContext(backbone=backbone)
        loss = plain._preserving(plain._memory([CONCEPT], context), context, distill=False)
        before = resident()
        finetune(
            backbone,
            plain._trained(backbone).__contains__,
            loss,
            Optimisation(steps=steps + 1, lr=plain.lr, clip_norm=1.0),
            on_progress=note,
        )
    else:
        duge.fit([CONCEPT], FitContext(backbone=backbone, on_progress=note))
    seconds = [later - earlier for earlier, later in itertools.pairwise(moments)]
    return {
        "case": case,
        "trained": duge.trained,
        "batch_size": duge.batch_size,
        **spread(seconds),
        "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20,
    }


def resident() -> int:
    """Return the bytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
