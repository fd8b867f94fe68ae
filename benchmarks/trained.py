"""Training steps of ESD, DUGE and TRCE's second stage against plain loops of the same equations, on the tiny world.

- ours: the eraser's own `fit`;
- batched: a plain loop with a copy of the denoiser as the student and a pass for each model and prompt, every reference
  computed again at every step;
- plain: the same loop with one image at a time, as the methods' published scripts train.

All draw the same numbers, and the run compares the weights that come out. Each runs in a process of its own, so that
its peak of memory is its own: what the process holds above what it held before the first step. Images that a method
trains on are made before, and are no part of the time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import Backbone, backbone_of
from erasure.closed_form.sentences import SentencePair
from erasure.concept import Concept
from erasure.edits import DenseChange, WeightEdit
from erasure.erasers.duge import DUGE
from erasure.erasers.esd import ESD, trained_by
from erasure.erasers.trce import TRCE, steered
from erasure.profile import profile_of
from erasure.progress import Progress
from erasure.training.context import FitContext, History
from erasure.training.steering import planned_latents

from .plain_loops import CAT, GUN, Note, plain_duge, plain_esd, plain_trce
from .record import arguments, peak_mib, reset_peak, resident_mib, write_run

VERSION = 1
WAYS = ("ours", "batched", "plain")
SAME = 0.05  # Adam's first steps are as long for a gradient that is all rounding as for any other

Deltas = Mapping[str, Tensor]


def main() -> None:
    """Time each case in each way, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=32, help="updates that are timed, after four that are not")
    parser.add_argument("--toy", action="store_true", help="few steps, to try the script")
    parser.add_argument("--case", choices=[f"{case}:{way}" for case in CASES for way in WAYS], help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.toy:
        options.steps = 4
    if options.case:
        print(json.dumps(measured(options.case, options.steps, options.save)))
        return
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results = [compared(case, options.steps, options.repeats, Path(folder)) for case in CASES]
    write_run(options, name="trained", version=VERSION, results=results, started=started, torch=torch)


def compared(case: str, steps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Return speed and memory of each way on a case, and the difference of its weights from ours."""
    by_way: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):  # in turns, so that a busy moment hits all alike
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.trained", "--case", f"{case}:{way}", "--steps", str(steps)]
            saved = folder / f"{case}-{way}.safetensors"
            done = subprocess.run([*command, "--save", str(saved)], check=True, stdout=subprocess.PIPE, text=True)
            got = json.loads(done.stdout.splitlines()[-1])
            before = by_way.setdefault(way, {**got, "all_steps_per_second": []})
            before["all_steps_per_second"].append(got["steps_per_second"])
            before["steps_per_second"] = max(before["all_steps_per_second"])
            before["difference"] = difference(load_file(folder / f"{case}-ours.safetensors"), load_file(saved))
            assert before["difference"] < SAME, f"{case}: {way} is apart by {before['difference']}"
    ours = by_way["ours"]
    for way in WAYS:
        each = by_way[way]
        each["ratio"] = ours["steps_per_second"] / each["steps_per_second"]
        print(
            f"{case}, {way}: {each['steps_per_second']:.2f} steps a second, ours {each['ratio']:.2f} times that,"
            f" {each['peak_mib']:.0f} MiB, weights apart by {each['difference']:.1e} of their change"
        )
    return {"case": case, "batch_size": CASES[case].settings.batch_size, "ways": by_way}


def difference(ours: Deltas, other: Deltas) -> float:
    """Return |ours - other|_F / |ours|_F over all changes of weights."""
    assert ours.keys() == other.keys()
    apart = sum((ours[name].double() - other[name].double()).square().sum() for name in ours)
    return float((apart / sum(delta.double().square().sum() for delta in ours.values())) ** 0.5)


def measured(case_and_way: str, steps: int, save: Path) -> dict[str, Any]:
    """Train one case in one way, save the changes of the weights, and return steps a second and the peak of memory."""
    name, _, way = case_and_way.partition(":")
    case, warm = CASES[name], 4  # as many as feed on one trajectory of ESD's
    backbone = backbone_of(tinyworld.load())
    moments: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        history = History(memory=Path(folder))
        settings = case.ready(backbone, case.settings, steps + warm, history)
        reset_peak()
        before = resident_mib()

        def note(step: Progress | None = None) -> None:
            if step is None or step.stage == "fit":
                moments.append(time.perf_counter())

        if way == "ours":
            deltas = learned(
                settings.fit([case.concept], FitContext(backbone=backbone, history=history, on_progress=note)),
                case.trained(backbone).__contains__,
            )
        else:
            at_once = 1 if way == "plain" else settings.batch_size
            deltas = case.plain(backbone, settings, history, at_once, note)
    assert len(moments) == steps + warm
    save_file({name: delta.contiguous() for name, delta in deltas.items()}, save)
    return {
        "steps_per_second": steps / (moments[-1] - moments[warm - 1]),
        "steps": steps,
        "peak_mib": peak_mib() - before,
    }


def learned(edit: WeightEdit, trained: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the trained changes of an edit, by full parameter name."""
    return {
        name: change.delta for name, change in edit.changes.items() if isinstance(change, DenseChange) and trained(name)
    }


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training to time, and its preparation.

    Attributes:
        concept: Concept to remove.
        settings: The eraser.
        trained: Returns the full names of the parameters that the loops train.
        ready: Returns the eraser for a number of updates, with its images in the history's folder.
        plain: The plain loop.
    """

    concept: Concept
    settings: Any
    trained: Callable[[Backbone], frozenset[str]]
    ready: Callable[[Backbone, Any, int, History], Any]
    plain: Callable[[Backbone, Any, History, int, Note], dict[str, Tensor]]


def ready_esd(backbone: Backbone, settings: ESD, steps: int, history: History) -> ESD:
    """ESD makes its latents while it trains."""
    return replace(settings, steps=steps)


def ready_duge(backbone: Backbone, settings: DUGE, steps: int, history: History) -> DUGE:
    """DUGE's images are made by a fit of no update."""
    replace(settings, steps=0).fit([CAT], FitContext(backbone=backbone, history=history))
    return replace(settings, steps=steps)


def ready_trce(backbone: Backbone, settings: TRCE, steps: int, history: History) -> TRCE:
    """TRCE's updates follow from its trajectories, which are visited as often as it takes."""
    visits = steps * settings.batch_size
    each = settings.trajectories * len(GUN.names)
    assert visits % each == 0, f"steps: expected whole epochs of {each // settings.batch_size} updates, got {steps}."
    ready = replace(settings, epochs=visits // each)
    prompts = [SentencePair.of(ready.trajectory_frame, name, GUN).prompt for name in GUN.names]
    planned_latents(prompts, ready._plan(len(GUN.names), 0), FitContext(backbone=backbone, history=history))
    return ready


_TINY_ESD = ESD(steps=1, lr=1e-4, batch_size=8, sample_steps=20, trajectory_uses=4, prompts="templates")
_DUGE = DUGE(
    **{
        **profile_of("tinyworld").settings("duge"),
        "memory_size": 16,
        "target_images": 8,
        "image_steps": 4,
        "probe_every": 0,
        "max_similarity": 1.0,
        "unlearn_scale": 10.0,
    }
)
_TRCE = TRCE(
    **{
        **profile_of("tinyworld").settings("trce"),
        "sample_steps": 10,
        "early_steps": 5,
        "trajectories": 8,
        "null_trajectories": 16,
    }
)
CASES = {
    "esd": Case(
        concept=CAT,
        settings=_TINY_ESD,
        trained=lambda backbone: trained_by("x", backbone),
        ready=ready_esd,
        plain=plain_esd,
    ),
    "esd, one start code, as published": Case(
        concept=CAT,
        settings=replace(_TINY_ESD, batch_size=1, trajectory_uses=1, prompts="bare"),
        trained=lambda backbone: trained_by("x", backbone),
        ready=ready_esd,
        plain=plain_esd,
    ),
    "duge": Case(concept=CAT, settings=_DUGE, trained=_DUGE._trained, ready=ready_duge, plain=plain_duge),
    "trce, stage 2": Case(concept=GUN, settings=_TRCE, trained=steered, ready=ready_trce, plain=plain_trce),
}


if __name__ == "__main__":
    main()
