"""Closed forms without loading the model, beside the same on a loaded one: peak memory, seconds, the files' bytes.

Models of full size with random weights, in shards of float16, are written to a temporary folder. On each,

- low: `erasure remove --low-memory --out`, in a process of its own;
- loaded: `erasure remove`, then `erasure export`, each in a process of its own; the larger peak and both times count;
- beyond: what fitting and applying takes beyond the memory that a loaded model holds already.

A model of FLUX.1's sizes (bfloat16, 33 GB) is larger than the memory of most machines: on it, on one with 4 of T5's 24
layers, and on a thin one of the same widths, the first is run alone, with hard links to the files that do not change.

Peak memory is what the operating system says of a process: the largest resident set, with the libraries that it loads.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from erasure.concept import Concept
from erasure.loading import load_model
from tests import full_size, tiny

from .record import arguments, write_run

VERSION = 2
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_MODELS = {**full_size.MODELS, **full_size.LARGE}
CONCEPT = Concept(target="Van Gogh", kind="style", preserve=("Monet", "Rembrandt"))


def main() -> None:
    """Measure each model, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=["sd15", "sdxl"])
    parser.add_argument("--loaded", nargs="*", default=["sd15", "sdxl"], help="models that the loaded way is run on")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="data type of the model that `beyond` is measured on"
    )
    parser.add_argument("--work", type=Path, help="folder for the models  [default: the system's temporary one]")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the run, such as eraser.rows=last-subject")
    parser.add_argument("--toy", action="store_true", help="a small model, to try the script")
    options = parser.parse_args()
    started = time.perf_counter()
    results = []
    for name in ["toy"] if options.toy else options.models:
        with model_of(name, options.work) as (folder, spare):
            results.append({"model": name, **measured(name, folder, spare, options)})
        print(line(results[-1]))
    write_run(options, name="low-memory", version=VERSION, results=results, started=started, torch=torch)


@contextmanager
def model_of(name: str, work: Path | None) -> Iterator[tuple[Path, Path]]:
    """Give the folder of a model, and one for what is made of it, for the length of a `with`."""
    with TemporaryDirectory(dir=work) as root:
        folder, spare = Path(root) / "model", Path(root) / "made"
        spare.mkdir()
        if name == "toy":
            tiny.sd1(vocabulary="clip").save_pretrained(folder, max_shard_size="100KB")
        else:
            dtype = torch.bfloat16 if name in full_size.LARGE else torch.float16
            full_size.write_model(_MODELS[name](), folder, dtype=dtype)
        yield folder, spare


def measured(name: str, folder: Path, spare: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the memory and time of both ways on one model, and whether their files are equal."""
    removal_options = [
        "remove",
        CONCEPT.target,
        "--kind",
        CONCEPT.kind,
        "--preserve",
        *CONCEPT.preserve,
        "--model",
        str(folder),
        *(part for setting in options.set for part in ("--set", setting)),
    ]
    # A copy of the largest would not fit on most disks; one that is compared byte by byte is written out.
    linked = ["--link"] if name in full_size.LARGE else []
    low = full_size.command(
        [*removal_options, "--ledger", f"{spare}/low", "--low-memory", "--out", f"{spare}/low-model", *linked]
    )
    record: dict[str, Any] = {"low": low, "model_mib": size_mib(folder)}
    if name == "toy" or name in options.loaded:
        ledger, export_folder = f"{spare}/loaded", f"{spare}/loaded-model"
        parts = [
            full_size.command([*removal_options, "--ledger", ledger, "--no-measure", "--device", "cpu"]),
            full_size.command(["export", ledger, export_folder, "--no-images", "--device", "cpu"]),
        ]
        loaded = {
            "peak_mib": max(part["peak_mib"] for part in parts),
            "seconds": sum(part["seconds"] for part in parts),
        }
        record |= {
            "loaded": loaded,
            "ratio": loaded["peak_mib"] / low["peak_mib"],
            "same_bytes": weights_of(spare / "low-model") == weights_of(Path(export_folder)),
        }
    if name in full_size.LARGE:
        return record
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        over = pool.submit(beyond, folder, options.dtype).result()
    return record | {"beyond": over}


def beyond(folder: Path, dtype: str) -> dict[str, Any]:
    """Return the memory of a removal beyond a loaded model, the weights that it changes, and its bound."""
    pipe = load_model(str(folder), dtype=DTYPES[dtype])
    touched = full_size.text_weights_mib(pipe)
    peak = full_size.peak_beyond_mib(pipe, CONCEPT)
    return {"dtype": dtype, "peak_mib": peak, "touched_mib": touched, "bound_mib": full_size.bound_mib(touched)}


def weights_of(folder: Path) -> dict[str, str]:
    """Return the hash of each file of weights."""
    hashes = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def size_mib(folder: Path) -> float:
    """Return the size of a model's weights on the disk."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20


def line(result: dict[str, Any]) -> str:
    """Say one model in a line."""
    low, over = result["low"], result.get("beyond")
    said = f"{result['model']}: low {low['peak_mib']:.0f} MiB"
    said += f" ({low['anonymous_mib']:.0f} without files), {low['seconds']:.0f} s"
    if "loaded" in result:
        loaded = result["loaded"]
        same = "the same bytes" if result["same_bytes"] else "OTHER BYTES"
        said += f"; loaded {loaded['peak_mib']:.0f} MiB = {result['ratio']:.1f} x, {loaded['seconds']:.0f} s, {same}"
    if over is None:
        return said
    return (
        f"{said}; beyond a loaded model {over['peak_mib']:.0f} MiB ({over['dtype']}),"
        f" of at most {over['bound_mib']:.0f}"
    )


if __name__ == "__main__":
    main()
