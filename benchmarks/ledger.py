"""A ledger that grows one removal at a time: the time of each, its size on the disk, and the solve at the end.

A small model of Stable Diffusion 1.x's classes, with random weights and states that are 32 wide, so that a fit takes
little beside what the ledger does; requests are two words each, by UCE's defaults. The weights at the end are compared
with those of a ledger to which the same edits were added in reverse.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.erasers import make_eraser
from erasure.ledger import Ledger
from tests.tiny import sd1

from .record import arguments, write_run

VERSION = 2
WORDS = (
    *("cat", "dog", "rabbit", "fish", "bird", "tree", "flower", "mushroom", "cactus", "house", "church"),
    *("castle", "car", "cart", "boat", "rocket", "umbrella", "guitar", "hammer", "scissors", "gun", "knife"),
    *("bomb", "beach", "forest", "night", "snow", "desert", "city", "neon", "mosaic", "pixel", "ladder"),
)


def main() -> None:
    """Grow a ledger, print a line a hundred removals, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--removals", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="removals that one line is about")
    parser.add_argument("--toy", action="store_true", help="few removals, to try the script")
    options = parser.parse_args()
    if options.toy:
        options.removals, options.every = 6, 3
    started = time.perf_counter()
    pairs = list(itertools.permutations(WORDS, 2))
    if options.removals > len(pairs):
        parser.error(f"--removals: expected at most {len(pairs)}, as many as there are pairs of words.")
    concepts = [Concept(target=f"{one} {other}", preserve=("a lamp",)) for one, other in pairs[: options.removals]]
    with tempfile.TemporaryDirectory() as folder:
        results = grown(sd1(), concepts, Path(folder), options.every)
    write_run(options, name="ledger", version=VERSION, results=results, started=started, torch=torch)


def grown(pipe: DiffusionPipeline, concepts: list[Concept], folder: Path, every: int) -> list[dict[str, Any]]:
    """Return the times of every so many removals, then what the whole came to."""
    uce, results = make_eraser("uce"), []
    ledger = Ledger.open_or_create(folder / "grown", pipe, "small")
    begun = time.perf_counter()
    for number, concept in enumerate(concepts, 1):
        ledger.remove(pipe, uce, [concept])
        if number % every == 0:
            seconds = time.perf_counter() - begun
            fits = sum(entry.seconds or 0 for entry in ledger.entries[-every:])
            results.append(
                {
                    "case": "growth",
                    "removals": number,
                    "of": every,
                    "seconds_each": seconds / every,
                    "fit_seconds_each": fits / every,
                }
            )
            print(f"{number} removals, the last {every} in {seconds:.2f} s")
            begun = time.perf_counter()
    start = time.perf_counter()
    edit = ledger.edit()
    solve = time.perf_counter() - start
    whole = {
        "case": "whole",
        "removals": len(concepts),
        "solve_seconds": solve,
        **sizes(ledger),
        "same_in_reverse": same(pipe, edit, reversed_ledger(pipe, ledger, folder / "reversed").edit()),
    }
    print(", ".join(f"{key} {value}" for key, value in whole.items()))
    return [*results, whole]


def sizes(ledger: Ledger) -> dict[str, Any]:
    """Return the size of a ledger on disk, and the number and width of the states of its first removal."""
    files = {path: path.stat().st_size for path in ledger.path.rglob("*") if path.is_file()}
    apart = [size for path, size in files.items() if path.parent.name == "rows"]
    rows = WeightEdit.load(ledger.path / ledger.entries[0].file).rows
    assert rows is not None  # UCE's edits have them
    text = rows["text"]
    return {
        "bytes_each": sum(files[ledger.path / entry.file] for entry in ledger.entries) / len(ledger.entries),
        "shared_bytes": sum(apart),
        "shared_files": len(apart),
        "ledger_json_bytes": files[ledger.path / "ledger.json"],
        "disk_bytes_each": sum(files.values()) / len(ledger.entries),
        "target_rows": len(text.targets),
        "preserved_rows": len(text.preserve),
        "width": text.targets.shape[1],
    }


def reversed_ledger(pipe: DiffusionPipeline, ledger: Ledger, folder: Path) -> Ledger:
    """Return a ledger of the same removals in the other order."""
    other = Ledger.open_or_create(folder, pipe, "small")
    for entry in reversed(ledger.entries):
        other.add(WeightEdit.load(ledger.path / entry.file))
    return other


def same(pipe: DiffusionPipeline, one: WeightEdit, other: WeightEdit) -> bool:
    """Return True if two edits give the same weights, bit for bit."""
    weights = backbone_of(pipe).parameters(one.changes.__contains__)
    return one.changes.keys() == other.changes.keys() and all(
        torch.equal(one.changes[name].of(weight.detach()), other.changes[name].of(weight.detach()))
        for name, weight in weights.items()
    )


if __name__ == "__main__":
    main()
