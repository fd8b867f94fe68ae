"""A ledger that grows one removal at a time: the time of each, its size on the disk, and the solve at the end.

A small model of Stable Diffusion 1.x's classes, with random weights; requests are two words each, by UCE's
defaults. The weights at the end are compared with those of a ledger to which the same edits were added in reverse.
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edit import Edit
from erasure.erasers import make_eraser
from erasure.ledger import Ledger
from tests.tiny import sd1

from .record import arguments, write_run

VERSION = 1
WORDS = (
    *("cat", "dog", "rabbit", "fish", "bird", "tree", "flower", "mushroom", "cactus", "house", "church"),
    *("castle", "car", "cart", "boat", "rocket", "umbrella", "guitar", "hammer", "scissors", "gun", "knife"),
    *("bomb", "beach", "forest", "night", "snow", "desert", "city", "neon", "mosaic", "pixel"),
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
    pairs = itertools.islice(itertools.permutations(WORDS, 2), options.removals)
    concepts = [Concept(target=f"{one} {other}", preserve=("a lamp",)) for one, other in pairs]
    with tempfile.TemporaryDirectory() as folder:
        results = grown(sd1(), concepts, Path(folder), options.every)
    write_run(options, name="ledger", version=VERSION, results=results, started=started, torch=torch)


def grown(pipe: Any, concepts: list[Concept], folder: Path, every: int) -> list[dict[str, Any]]:
    """Return the times of every so many removals, then what the whole came to."""
    uce, results = make_eraser("uce"), []
    ledger = Ledger.open_or_create(folder / "grown", pipe, "small")
    begun = time.perf_counter()
    for number, concept in enumerate(concepts, 1):
        ledger.remove(pipe, uce, [concept])
        if number % every == 0:
            now = time.perf_counter()
            results.append({"removals": number, "seconds_each": (now - begun) / every})
            print(f"{number} removals, the last {every} in {now - begun:.2f} s")
            begun = time.perf_counter()
    start = time.perf_counter()
    edit = ledger.edit()
    solve = time.perf_counter() - start
    sizes = [(folder / "grown" / entry.file).stat().st_size for entry in ledger.entries]
    whole = {
        "removals": len(concepts),
        "solve_seconds": solve,
        "bytes_each": sum(sizes) / len(sizes),
        "ledger_json_bytes": (folder / "grown" / "ledger.json").stat().st_size,
        "same_in_reverse": same(pipe, edit, reversed_ledger(pipe, ledger, folder / "reversed").edit()),
    }
    print(", ".join(f"{key} {value}" for key, value in whole.items()))
    return [*results, whole]


def reversed_ledger(pipe: Any, ledger: Ledger, folder: Path) -> Ledger:
    """Return a ledger of the same removals in the other order."""
    other = Ledger.open_or_create(folder, pipe, "small")
    for entry in reversed(ledger.entries):
        other.add(Edit.load(ledger.path / entry.file))
    return other


def same(pipe: Any, one: Edit, other: Edit) -> bool:
    """Say whether two edits make the same weights, bit for bit."""
    weights = backbone_of(pipe).parameters(one.changes.__contains__)
    return one.changes.keys() == other.changes.keys() and all(
        torch.equal(one.changes[name].of(weight.detach()), other.changes[name].of(weight.detach()))
        for name, weight in weights.items()
    )


if __name__ == "__main__":
    main()
