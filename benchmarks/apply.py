"""Writing a model's folder with an edit in it, beside a plain copy of the same folder in the same run.

The edit is the joint solve of so many concepts, on a model of Stable Diffusion 1.5's size with random weights, which
stays in its files (`--low-memory`): every tensor is looked at for values that are not finite as it is copied. Once more
with hard links to the files that stay. Bytes are those that the process read and wrote by the system's count, the
disk's cache included. Copy and writing take turns, and both end when all is on the disk.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.edits import EditMetadata, WeightEdit
from erasure.loading.models import load_stored
from erasure.pipelines.export.folders import write_edited
from tests import full_size, tiny

from .closed_form import random_rows
from .record import arguments, spread, write_run

VERSION = 1
_COUNTS = Path("/proc/self/io")


def main() -> None:
    """Time the writing of edited folders, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--folder", type=Path, help="a model's folder that is there already")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure, for the written models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a small model, to try the script")
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    started = time.perf_counter()
    with TemporaryDirectory(dir=options.work) as work:
        folder = options.folder or Path(work) / "model"
        if options.toy:
            tiny.sd1().save_pretrained(folder)
        elif not options.folder:
            full_size.write_model(full_size.sd15(), folder)
        results = measured(folder, Path(work), options)
    for result in results:
        print(line(result))
    write_run(options, name="apply", version=VERSION, results=results, started=started, torch=torch)


def measured(folder: Path, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return seconds and bytes of a plain copy, and of the ways to write an edited folder, beside the copy."""
    pipe = load_stored(str(folder))
    ways: dict[tuple[int, bool], Callable[[Path], object]] = {(0, False): lambda to: shutil.copytree(folder, to)}
    for concepts in options.concepts:
        edit = solved(pipe, concepts, seed=options.seed)
        for link in (False, True):
            ways[concepts, link] = lambda to, edit=edit, link=link: written(edit, pipe, folder, to, link=link)
    turns: dict[tuple[int, bool], list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.repeats + 1):  # the first warms up
        for way, write in ways.items():
            turns[way].append(one_turn(write, work / "written"))
    results = []
    for (concepts, link), all_turns in turns.items():
        case = {"case": "apply" if concepts else "copy", "concepts": concepts, "link": link}
        case |= spread([turn["seconds"] for turn in all_turns[1:]])
        results.append({**case, **{key: all_turns[-1].get(key) for key in ("size", "read", "written")}})
    for result in results:
        result["ratio"] = result["seconds"] / results[0]["seconds"]
        moved, copied = ((each["read"] or 0) + (each["written"] or 0) for each in (result, results[0]))
        result["ratio_bytes"] = moved / copied if copied else None
    return results


def written(edit: WeightEdit, pipe: DiffusionPipeline, folder: Path, to: Path, *, link: bool) -> None:
    """Write an edited folder."""
    to.mkdir()
    write_edited(edit, pipe, folder, to, link=link)


def solved(pipe: DiffusionPipeline, concepts: int, *, seed: int) -> WeightEdit:
    """Return the joint closed form of so many concepts, one random state each."""
    backbone = backbone_of(pipe)
    rows = random_rows(concepts, 100, dim=pipe.text_encoder.config.hidden_size, reg=0.5, seed=seed)
    metadata = EditMetadata.of("uce", {}, backbone, [Concept(target=label) for label in rows.labels], seed)
    return WeightEdit.from_rows(rows, list(backbone.sites(reads="text")), metadata)


def one_turn(write: Callable[[Path], object], to: Path) -> dict[str, float]:
    """Return seconds and bytes of one writing that begins with nothing left to write; its folder is deleted."""
    os.sync()
    before, start = counts(), time.perf_counter()
    write(to)
    for path in to.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    moved = {name: count - before[name] for name, count in counts().items()}
    size = sum(path.stat().st_size for path in to.rglob("*") if path.is_file())
    shutil.rmtree(to)
    return {"seconds": seconds, "size": size, **moved}


def counts() -> dict[str, int]:
    """Return the bytes that this process has read and written so far; nothing where the system does not count them."""
    if not _COUNTS.exists():
        return {}
    values = dict(row.split(": ") for row in _COUNTS.read_text(encoding="ascii").splitlines())
    return {"read": int(values["rchar"]), "written": int(values["wchar"])}


def line(result: dict[str, Any]) -> str:
    """Say one case in a line."""
    what = f"{result['concepts']:,} concepts{', linked' if result['link'] else ''}" if result["concepts"] else "copy"
    bytes_ = "" if result["ratio_bytes"] is None else f", {result['ratio_bytes']:.2f} x its bytes"
    return f"{what}: {result['size'] / 1e9:.3f} GB in {result['seconds']:.2f} s, {result['ratio']:.2f} x a copy{bytes_}"


if __name__ == "__main__":
    main()
