"""Fills an image store with a tiny model, in one of several processes."""

from pathlib import Path

from erasure.eval.images.store import generate
from erasure.progress import Progress
from erasure.sampling import SamplingSettings
from tests import tiny

PROMPTS = ["a cat", "a dog", "Null", "a house on the beach", "a cat", "", "a tree"]
SEEDS = [0, 1, 2, 3, 4, 5, 6]
SAMPLER = SamplingSettings(steps=2, guidance_scale=4.0, batch_size=2)


def rows_made(folder: Path) -> list[int]:
    """Return the numbers of rows that were reported while the store was filled."""
    reports: list[Progress] = []
    generate(tiny.sd1(), PROMPTS, SEEDS, folder, sampler=SAMPLER, on_progress=reports.append)
    return [report.done for report in reports]
