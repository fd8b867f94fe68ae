"""A guided step of A-STAR against an ordinary step, and against diffusers' Attend-and-Excite pipeline.

On a denoiser of Stable Diffusion 1.5's size with random weights, 512 x 512 pixels, classifier-free guidance. Each case
runs in a process of its own, so that its peak of memory is its own: what the process holds above the loaded model.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from diffusers import StableDiffusionAttendAndExcitePipeline

from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.pipelines.a_star import StableDiffusionAStarPipeline
from tests import tiny

from .duge_step import resident
from .record import arguments, spread, write_run

VERSION = 1
PROMPT, CONCEPTS = "a cat and a dog", ["cat", "dog"]
POSITIONS = [2, 5]  # of the two words among CLIP's tokens
CASES = ("ordinary", "A-STAR", "Attend-and-Excite, ours", "Attend-and-Excite, diffusers")


def main() -> None:
    """Time each case, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="denoising steps that are timed, after one that is not")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--toy", action="store_true", help="a tiny denoiser, to try the script")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured(options.case, options.steps, options.device, options.toy)))
        return
    started = time.perf_counter()
    results: list[dict[str, Any]] = []
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.a_star", "--case", case, "--steps", str(options.steps)]
        command += ["--device", options.device, *(["--toy"] if options.toy else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        ordinary = results[0] if results else result
        extra = result["seconds"] / ordinary["seconds"] - 1
        results.append({**result, "extra": extra})
        print(f"{case}: {result['seconds']:.2f} s a step, {extra:+.2f}, {result['peak_mib']:.0f} MiB above the model")
    write_run(
        options, name="a-star", version=VERSION, results=results, started=started, torch=torch, device=options.device
    )


def measured(case: str, steps: int, device: str, toy: bool) -> dict[str, Any]:
    """Return the seconds of a step and the peak of memory of one case."""
    base = (tiny.sd1(vocabulary="clip") if toy else tiny.sd15()).to(device)
    kind: Any = StableDiffusionAttendAndExcitePipeline if case.endswith("diffusers") else StableDiffusionAStarPipeline
    pipe = kind.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"num_inference_steps": steps + 2, "output_type": "latent"}
    arguments["generator"] = torch.Generator().manual_seed(0)
    if case == "A-STAR":
        arguments["concepts"] = CONCEPTS
    elif case.endswith("diffusers"):
        size = pipe.unet.config.sample_size // (1 if toy else 4)
        arguments |= {
            "token_indices": POSITIONS,
            "attn_res": (size, size),
            "thresholds": {},
        }  # an update a step, no more
    moments: list[float] = []
    step = pipe.scheduler.step

    def note(*args: Any, **kwargs: Any) -> Any:
        if device == "cuda":
            torch.cuda.synchronize()
        moments.append(time.perf_counter())
        return step(*args, **kwargs)

    pipe.scheduler.step = note
    before = held(device)
    if case.endswith("ours"):
        guidance = AttendAndExcite(concepts=tuple(CONCEPTS), steps_range=(0.0, 1.0), refine_at=(), peaks=())
        with guidance.applied_to(pipe):
            pipe(PROMPT, **arguments)
    else:
        pipe(PROMPT, **arguments)
    # The first two moments are of the first step, which also warms up.
    seconds = [later - earlier for earlier, later in itertools.pairwise(moments[1:])]
    return {"case": case, **spread(seconds), "peak_mib": (peak(device) - before) / 2**20}


def held(device: str) -> int:
    """Return the bytes that are in use now."""
    return torch.cuda.memory_allocated() if device == "cuda" else resident()


def peak(device: str) -> int:
    """Return the most bytes that were ever in use."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
