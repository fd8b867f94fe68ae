"""Making and measuring the images of an evaluation: against the raw pipeline, and as their number grows."""

import random
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from erasure import tinyworld
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.images.manifest import Manifest
from erasure.eval.images.png import as_png
from erasure.eval.images.store import ImageStore, generate
from erasure.eval.protocols.tinyworld_metrics import TinyWorldMetrics
from erasure.profile import profile_of
from erasure.sampling import Pair, SamplingSettings
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw

from .record import arguments, peak_mib, spread, write_run

VERSION = 3


def main() -> None:
    """Time generation and metrics, print a line each, and write run.json where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=64, help="number of images in one repeat")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=profile_of("tinyworld").sampling.steps)
    parser.add_argument("--toy", action="store_true", help="few images and steps, to try the script")
    options = parser.parse_args()
    if options.toy:
        options.images, options.batch, options.steps, options.repeats = 4, 2, 2, 2
    started = time.perf_counter()
    results = [generation(options), texts(), *memory([2_000, 4_000, 8_000, 16_000] if not options.toy else [80, 160])]
    for result in results:
        print(", ".join(f"{key} {value}" for key, value in result.items() if key not in ("raw", "store", "ratios")))
    write_run(options, name="evaluation", version=VERSION, results=results, started=started, torch=torch)


def generation(options: Any) -> dict[str, Any]:
    """Return images a second of the raw pipeline and of the store, and the median of their ratios.

    A pair has equal prompts and seeds, and which of the two comes first alternates.
    """
    pipe = tinyworld.load()
    names = vocabulary.concepts()
    prompts = [vocabulary.prompts_for(names[i % len(names)], 1)[0] for i in range(options.images)]
    sampler = SamplingSettings(steps=options.steps, guidance_scale=4.0, batch_size=options.batch)

    def raw(seeds: list[int], folder: Path) -> None:
        for index in range(0, options.images, options.batch):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[index : index + options.batch]]
            pipe(
                prompts[index : index + options.batch],
                generator=generators,
                num_inference_steps=options.steps,
                guidance_scale=4.0,
            )

    def store(seeds: list[int], folder: Path) -> None:
        generate(pipe, prompts, seeds, folder / "store", sampler=sampler)

    ways = {"raw": raw, "store": store}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        seeds = [repeat * options.images + i for i in range(options.images)]
        for name in list(ways) if repeat % 2 else list(reversed(ways)):
            with tempfile.TemporaryDirectory() as folder:
                start, used = time.perf_counter(), time.process_time()
                ways[name](seeds, Path(folder))
                taken[name].append((time.perf_counter() - start, time.process_time() - used))
    measured: dict[str, Any] = {"case": "generation"}
    for name, pairs in taken.items():  # the first of each warms up
        seconds, processor = (list(each) for each in zip(*pairs[1:], strict=True))
        measured[name] = {**spread(seconds), "all_processor_seconds": processor}
        measured[f"{name}_images_per_second"] = options.images / measured[name]["seconds"]
    for key, of in (("ratios", "all_seconds"), ("processor_ratios", "all_processor_seconds")):
        measured[key] = [one / other for one, other in zip(measured["raw"][of], measured["store"][of], strict=True)]
    measured["ratio"] = statistics.median(measured["ratios"])
    measured["processor_ratio"] = statistics.median(measured["processor_ratios"])
    return measured


def texts() -> dict[str, Any]:
    """Return the number of texts that CLIP's text tower reads for 400 images of 20 prompts."""
    from erasure.eval.metrics.clip_score import ClipScore

    judge, read = tinyworld.load_clip(), []

    class Counting:
        def image_features(self, images: list[Any], /) -> torch.Tensor:
            return judge.image_features(images)

        def text_features(self, texts: list[str], /) -> torch.Tensor:
            read.extend(texts)
            return judge.text_features(texts)

    score = ClipScore(clip=Counting())
    prompts = vocabulary.prompts_for("cat", 20)
    rng = np.random.default_rng(0)
    for _ in range(20):
        score.update(rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8), prompts)
    return {"case": "texts", "pictures": 400, "distinct": len(set(prompts)), "texts_read": len(read)}


def memory(counts: list[int]) -> list[dict[str, Any]]:
    """Return the peak memory of measuring two rows, for growing numbers of images, a process each."""
    results = []
    for count in counts:
        # A process reads the next number of images with nothing left over from the last.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results.append(pool.submit(measuring, count).result())
    return results


def measuring(count: int) -> dict[str, Any]:
    """Measure two rows of drawings as an evaluation does, and return the peak of resident memory."""
    benchmark = TinyWorld(removed=("cat",), total=count)
    metrics = TinyWorldMetrics(benchmark=benchmark, oracle=tinyworld.load_oracle(), judge=tinyworld.load_clip())
    names = [name for name in vocabulary.OBJECTS for _ in range(3)]
    drawings = [draw(compose([name], random.Random(f"{name}{i}"))) for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: drawn(Path(folder) / name, drawings, benchmark.pairs) for name in ("erased", "original")}
        first = ImageStore(folder=stores["original"].folder, manifest=stores["original"].manifest)
        metrics.oracle.read_with_maps([first[row] for row in range(min(64, count))])  # what a batch takes
        start = peak_mib()
        if metrics.wants_reference:
            metrics.prepare(stores["original"])
        metrics.measure(stores, lambda more: None)
    return {
        "case": "measuring",
        "pictures": count,
        "rows": len(stores),
        "sets": metrics.wants_reference,
        "start_mib": round(start, 1),
        "peak_mib": round(peak_mib(), 1),
    }


def drawn(folder: Path, drawings: list[Image], pairs: list[Pair]) -> ImageStore:
    """Return a store of some drawings over and over."""
    manifest = Manifest(
        precision="float32",
        model=folder.name,
        edit="",
        scheduler={"name": "none"},
        steps=1,
        guidance_scale=1.0,
        negative_prompt="",
        images=tuple(pairs),
    )
    store = ImageStore(folder=folder, manifest=manifest)
    folder.mkdir()
    for row in range(len(store)):
        store.path(row).write_bytes(as_png(drawings[row % len(drawings)], {"manifest": manifest.id}))
    return store


if __name__ == "__main__":
    main()
