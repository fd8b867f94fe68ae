"""Making images in several processes with `accelerate launch`, against one process, on the tiny world.

One process has all cores' threads; several share them out, so that the same machine does the work. Seconds are from the
loaded model to the last image in the folder; what starting the processes takes stands beside them. The run compares
the images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image

from erasure import tinyworld
from erasure.eval.images.store import ImageStore, generate
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings
from erasure.tinyworld import vocabulary

from .record import arguments, spread, write_run

VERSION = 1


def main() -> None:
    """Time one process and several in turns, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=profile_of("tinyworld").sampling.steps)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--toy", action="store_true", help="few images and steps, to try the script")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.toy:
        options.images, options.batch, options.steps, options.repeats = 4, 2, 2, 1
    if options.worker:
        work(options)
        return
    started = time.perf_counter()
    taken: dict[int, list[dict[str, float]]] = {1: [], options.processes: []}
    apart = 0
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for processes in taken:
                taken[processes].append(launched(processes, Path(folder) / str(processes), options))
            apart = max(apart, largest_difference(Path(folder) / "1", Path(folder) / str(options.processes)))
    results = [summary(processes, measurements, options.images) for processes, measurements in taken.items()]
    for result in results:
        result["ratio"] = result["images_per_second"] / results[0]["images_per_second"]
        result["largest_difference"] = apart
        print(
            f"{result['processes']} processes, {result['threads']} threads each: {result['images_per_second']:.2f}"
            f" images a second, {result['ratio']:.2f} x, and {result['start_seconds']:.1f} s to start"
        )
    print(f"the same images to {apart} of 255")
    write_run(options, name="processes", version=VERSION, results=results, started=started, torch=torch)


def launched(processes: int, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Fill a store from so many processes; return what the first says, and the seconds of the whole command."""
    command = [sys.executable]
    if processes > 1:
        # "--multi_gpu" starts the processes whatever they run on ("--cpu" starts one only); the work asks for the CPU.
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "benchmarks.processes", "--worker", str(folder)]
    for name in ("images", "batch", "steps"):
        command += [f"--{name}", str(getattr(options, name))]
    threads = max(1, torch.get_num_threads() // processes)
    start = time.perf_counter()
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
    )
    [said] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {**json.loads(said), "whole": time.perf_counter() - start}


def work(options: argparse.Namespace) -> None:
    """Make this process's share of the images."""
    state = PartialState(cpu=True)
    pipe, names = tinyworld.load(), vocabulary.concepts()
    prompts = [vocabulary.prompts_for(names[i % len(names)], 1)[0] for i in range(options.images)]
    sampler = SamplingSettings(steps=options.steps, guidance_scale=4.0, batch_size=options.batch)
    state.wait_for_everyone()
    start = time.perf_counter()
    generate(pipe, prompts, list(range(options.images)), options.worker, sampler=sampler)
    if state.is_main_process:
        print(json.dumps({"seconds": time.perf_counter() - start, "threads": torch.get_num_threads()}))
    state.destroy_process_group()


def summary(processes: int, measurements: list[dict[str, float]], images: int) -> dict[str, Any]:
    """Return images a second by the median of the repeats."""
    seconds = spread([each["seconds"] for each in measurements])
    return {
        "processes": processes,
        "threads": measurements[0]["threads"],
        "pictures": images,
        "images_per_second": images / seconds["seconds"],
        **seconds,
        "start_seconds": spread([each["whole"] - each["seconds"] for each in measurements])["seconds"],
    }


def largest_difference(one: Path, other: Path) -> int:
    """Return the largest difference of a pixel value between the two folders, in [0, 255]."""
    stores = ImageStore.open(one), ImageStore.open(other)
    pairs = ((np.asarray(Image.open(store.path(row)), np.int16) for store in stores) for row in range(len(stores[0])))
    return max(int(abs(first - second).max()) for first, second in pairs)


if __name__ == "__main__":
    main()
