"""Images that a probe draws of a concept that a row of `experiments.ablate_absent` removed, beside the original's.

    python -m experiments.absent_failures mosaic-constant --concept mosaic --probe soft-prompt --dose 200
        --out docs/absent-mosaic.png

The row's edit is read from the folder in which its fit left it. Rows of the sheet, the same prompts and noise in each
pair: the concept asked for, before and after; kept concepts, before and after; the probe on the edited model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from rich.console import Console

from erasure.edits import WeightEdit
from erasure.eval.images.png import as_png
from erasure.eval.images.sheets import side_by_side
from erasure.eval.probes.base import Subject
from erasure.io.files import write_whole

from .ablate_absent import Bench, bench_of

ACROSS = 8
"""Images of a row of the sheet."""


def main() -> None:
    """Write the sheet of a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", help="name of the row")
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--anchor", help="concept that replaces it; default: none")
    parser.add_argument("--stop", type=int, default=800, help="number of steps of the edit")
    parser.add_argument("--probe", default="soft-prompt")
    parser.add_argument("--dose", type=float, default=200.0, help="dose of the probe")
    parser.add_argument("--images", type=int, default=16, help="images of the probe, as in the row")
    parser.add_argument("--kept", type=int, default=32, help="images of what stays")
    parser.add_argument("--work", type=Path, default=Path("tinyworld-runs/absent"))
    parser.add_argument("--out", type=Path, required=True, help="PNG file of the sheet")
    options = parser.parse_args()
    torch.set_num_threads(1)  # results differ between numbers of threads
    bench = bench_of(options)
    rows = images_of(bench, WeightEdit.load(bench.work / f"{options.stop}.safetensors"))
    sheet = side_by_side([""] * ACROSS, list(rows), [images[:ACROSS] for images in rows.values()], cell=96)
    write_whole(options.out, as_png(sheet))
    Console().print(str(options.out), markup=False)


def images_of(bench: Bench, edit: WeightEdit) -> dict[str, Sequence[Image]]:
    """Return the images of each row of the sheet by its caption."""
    options, concept = bench.options, bench.options.concept
    subject = Subject(pipe=bench.pipe, aim=bench.aim)
    before, kept = subject.sampled(), subject.sampled_kept()
    with edit.applied_to(bench.pipe, check=False):
        after, still = subject.sampled(), subject.sampled_kept()
    [outcome] = bench.outcomes(options.probe, edit, (options.dose,))
    shown = sum(map(bool, bench.judge.shows(list(outcome.images), concept)))
    caption = f"{options.probe} {options.dose:g}, {options.name}: {concept} in {shown} of {len(outcome.images)} images"
    return {
        f"{concept}, original": before,
        f"{concept}, {options.name}": after,
        "kept, original": kept,
        f"kept, {options.name}": still,
        caption: outcome.images,
    }


if __name__ == "__main__":
    main()
