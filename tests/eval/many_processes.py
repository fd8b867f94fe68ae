"""Fills an image store with a tiny model; started in several processes by a test."""

import sys

from accelerate import PartialState

from erasure.eval.images.store import generate
from erasure.progress import Progress
from erasure.sampling import SamplingSettings
from tests import tiny

PROMPTS = ["a cat", "a dog", "Null", "a house on the beach", "a cat", "", "a tree"]
SEEDS = [0, 1, 2, 3, 4, 5, 6]
SAMPLER = SamplingSettings(steps=2, guidance_scale=4.0, batch_size=2)

if __name__ == "__main__":
    PartialState(cpu=True)
    reports: list[Progress] = []
    generate(tiny.sd1(), PROMPTS, SEEDS, sys.argv[1], sampler=SAMPLER, on_progress=reports.append)
    print(f"made {[report.done for report in reports]}")
