"""Commands on the tiny world, each a process of its own, beside the least that they do.

- measure: `erasure remove cat`, which fits UCE, and samples and judges the images of the quick measure.
- export, card: `erasure export` of that ledger without and with the images of its model card.
- audit: `erasure audit --gold` of it, the quick suite, with no outcome in the cache.
- demo: `erasure app`, until it answers with its page; the first comparison is sampled before that.

The floor of a command is the start of a process that loads the same model with diffusers alone (and imports Gradio, for
the demo), the raw pipeline's time of as many images, and a plain copy of as many bytes. Images of an audit are those
that it judged; what else its probes do, trainings and searches among it, has no floor. Seconds are those that pass and
those of the processor, all threads together; ratios are of the latter, which count the same on a machine that does
other work.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from erasure import Ledger, tinyworld
from erasure.eval.reports.model_card import prompts_of
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings
from erasure.suggestions import suggested_prompts
from erasure.tinyworld import vocabulary
from tests.demo.running import free_port

from .record import arguments, write_run

VERSION = 1
CASES = ("measure", "export", "card", "audit", "demo")
"""The first is timed in any case: the others are of its ledger."""
GOLD = Path("results/golds/cat")
LONGEST = 600
"""Seconds after which the demo is given up."""
_FEW = ("per_concept=1", "near=1", "far=1", "health=false")
_LOAD = "from diffusers import StableDiffusionPipeline as P; P.from_pretrained({!r})"
Cost = dict[str, float]
"""Seconds that pass, as "seconds", and of the processor, as "cpu"."""


def main() -> None:
    """Time each command, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64, help="images of the raw pipeline")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="commands to time")
    parser.add_argument("--toy", action="store_true", help="few images, and an audit of one probe, to try the script")
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.toy:
        options.images, options.repeats = 4, 1
    started = time.perf_counter()
    with TemporaryDirectory() as work:
        results = measured(Path(work), options)
    for result in results:
        print(line(result))
    write_run(options, name="commands", version=VERSION, results=results, started=started, torch=torch)


def measured(work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cost of each command, and of the parts of its floor."""
    os.environ["ERASURE_CACHE"] = str(work / "cache")
    ledger, model = work / "ledger", str(tinyworld.MODEL)
    audit = ["erasure", "audit", str(ledger), "--gold", str(GOLD), "--out", str(work / "audit")]
    audit += ["--probe", "plain"] if options.toy else []
    image = raw(options.images)
    start = repeated(lambda: process(["python", "-c", _LOAD.format(model)]), options)
    remove = ["erasure", "remove", "cat", "--ledger", str(ledger)]
    for setting in _FEW if options.toy else ():
        remove += ["--set", f"measure.{setting}"]
    measure = process(remove)
    sampled = len(list(work.rglob("*.png")))
    results = [
        {"case": "start", **start},
        {"case": "image", "images": options.images, **image},
        {"case": "measure", "images": sampled, **measure, "floor": above(start, image, sampled)},
    ]
    for case in ("export", "card"):
        if case not in options.cases:
            continue
        more = ["--no-images"] if case == "export" else []
        cost = repeated(lambda more=more: exported(ledger, work / "folder", more), options)
        copy = {key: cost.pop(f"copy_{key}") for key in ("seconds", "cpu")}
        images = 2 * len(prompts_of(Ledger.open(ledger))) if case == "card" else 0  # before and after
        results.append({"case": case, "images": images, **cost, "floor": above(start, image, images, copy)})
    if "audit" in options.cases:
        cost = process(audit)
        judged = judged_images(work / "cache")
        results.append({"case": "audit", "images": judged, **cost, "floor": above(start, image, judged)})
    if "demo" not in options.cases:
        return results
    libraries = repeated(lambda: process(["python", "-c", "import gradio; " + _LOAD.format(model)]), options)
    shown = profile_of("tinyworld").data.start
    looks = 4 * len(suggested_prompts("tinyworld", [shown], [])) if shown else 0
    cost = repeated(demo, options)
    return [*results, {"case": "demo", "images": looks, **cost, "floor": above(libraries, image, looks)}]


def raw(images: int) -> Cost:
    """Return the cost of an image of the raw pipeline, in batches as the library samples."""
    pipe = tinyworld.load()
    sampling = SamplingSettings.of(pipe)
    names = vocabulary.concepts()
    prompts = [vocabulary.prompts_for(names[i % len(names)], 1)[0] for i in range(images)]

    def batch(start: int) -> None:
        chosen = prompts[start : start + sampling.batch_size]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(chosen))]
        pipe(
            chosen,
            generator=generators,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
        )

    pipe.set_progress_bar_config(disable=True)
    batch(0)  # warms up
    start, used = time.perf_counter(), time.process_time()
    for index in range(0, images, sampling.batch_size):
        batch(index)
    return {"seconds": (time.perf_counter() - start) / images, "cpu": (time.process_time() - used) / images}


def process(command: Sequence[str]) -> Cost:
    """Return the cost of a command, which must succeed; "erasure" and "python" are those of this checkout."""
    start = time.perf_counter()
    running = started_process(command)
    return ended(running, start, expected=0)


def started_process(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a command; its errors are seen, its output is not."""
    program = {"erasure": [sys.executable, "-m", "erasure.cli"], "python": [sys.executable]}[command[0]]
    return subprocess.Popen([*program, *command[1:]], stdout=subprocess.DEVNULL)


def ended(running: "subprocess.Popen[bytes]", start: float, *, expected: int | None) -> Cost:
    """Wait for the end of a command and return its cost."""
    _, status, usage = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - start
    running.returncode = os.waitstatus_to_exitcode(status)
    if expected is not None and running.returncode != expected:
        raise SystemExit(f"{running.args}: expected exit code {expected}, got {running.returncode}.")
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime}


def exported(ledger: Path, to: Path, more: Sequence[str]) -> Cost:
    """Return the cost of an export, and of a plain copy of what it wrote."""
    cost = process(["erasure", "export", str(ledger), str(to), *more])
    start, used = time.perf_counter(), time.process_time()
    shutil.copytree(to, to.with_name("copy"))
    copy = {"copy_seconds": time.perf_counter() - start, "copy_cpu": time.process_time() - used}
    shutil.rmtree(to)
    shutil.rmtree(to.with_name("copy"))
    return {**cost, **copy}


def demo() -> Cost:
    """Return the cost of the demo until it answers with its page, and the seconds until a waiting page does."""
    port, start, waiting = free_port(), time.perf_counter(), 0.0
    running = started_process(["erasure", "app", "--port", str(port)])
    try:
        while True:
            if running.poll() is not None or time.perf_counter() - start > LONGEST:
                raise SystemExit(f"the demo: expected its page, got exit code {running.poll()}.")
            code = status_of(f"http://127.0.0.1:{port}/")
            waiting = waiting or (time.perf_counter() - start if code else 0.0)
            if code == 200:
                break
            time.sleep(0.1)
        ready = time.perf_counter() - start
        running.send_signal(signal.SIGTERM)
        return {**ended(running, start, expected=None), "seconds": ready, "waiting": waiting}
    finally:
        if running.returncode is None:
            running.kill()
            running.wait()


def status_of(address: str) -> int:
    """Return the status of an answer; 0 without one."""
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def judged_images(cache: Path) -> int:
    """Return the number of images that an audit with this cache judged."""
    units = [json.loads(path.read_text(encoding="utf-8")) for path in (cache / "audit").glob("*.json")]
    outcomes = [outcome for unit in units if unit["key"]["judge"] for outcome in unit["outcomes"]]
    return sum(len(outcome["values"]) + len(outcome["kept"]) for outcome in outcomes)


def repeated(cost_of: Callable[[], Cost], options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of a cost over the repeats, and all of its seconds; the first, discarded, fills the caches."""
    costs = [cost_of() for _ in range(options.repeats + 1)][1:]
    medians = {key: statistics.median(cost[key] for cost in costs) for key in costs[0]}
    return {**medians, "all_seconds": [cost["seconds"] for cost in costs], "all_cpu": [cost["cpu"] for cost in costs]}


def above(start: Cost, image: Cost, images: int, copy: Cost | None = None) -> Cost:
    """Return the floor of a command: a start, so many images, and a copy."""
    return {key: start[key] + images * image[key] + (copy or {key: 0.0})[key] for key in ("seconds", "cpu")}


def line(result: dict[str, Any]) -> str:
    """Say one case in a line."""
    said = f"{result['case']}: {result['seconds']:.2f} s, {result['cpu']:.2f} of the processor"
    if "floor" in result:
        floor = result["floor"]["cpu"]
        said += f", {result['images']} images, {result['cpu'] / floor:.2f} x the floor of {floor:.2f}"
    return said


if __name__ == "__main__":
    main()
