"""Making and measuring the pictures of an evaluation: against the raw pipeline, and as their number grows."""

import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasure import tinyworld
from erasure.eval.metrics.features import Given
from erasure.eval.metrics.fid import Fid
from erasure.eval.pictures import Sampler
from erasure.eval.store import generate
from erasure.tinyworld import vocabulary

from .record import arguments, spread, write_run

VERSION = 1


def main() -> None:
    """Time generation and metrics, print a line each, and write run.json where asked."""
    parser = arguments(__doc__)
    parser.add_argument("--pictures", type=int, default=64, help="a repeat")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=int(tinyworld.SAMPLER["steps"]))
    parser.add_argument("--toy", action="store_true", help="few pictures and steps, to try the script")
    options = parser.parse_args()
    if options.toy:
        options.pictures, options.batch, options.steps, options.repeats = 4, 2, 2, 2
    started = time.perf_counter()
    results = [generation(options), texts(), *memory([1_000, 4_000, 16_000] if not options.toy else [100, 200])]
    for result in results:
        print(", ".join(f"{key} {value}" for key, value in result.items() if key not in ("raw", "store")))
    write_run(options, name="evaluation", version=VERSION, results=results, started=started, torch=torch)


def generation(options: Any) -> dict[str, Any]:
    """Return pictures a second of the raw pipeline and of the store, alternating, and their ratio."""
    pipe = tinyworld.load()
    names = vocabulary.concepts()
    prompts = [vocabulary.prompts_for(names[i % len(names)], 1)[0] for i in range(options.pictures)]
    sampler = Sampler(steps=options.steps, guidance_scale=4.0, batch_size=options.batch)
    raw_seconds, store_seconds = [], []
    for repeat in range(options.repeats + 1):
        seeds = [repeat * options.pictures + i for i in range(options.pictures)]
        start = time.perf_counter()
        for at in range(0, options.pictures, options.batch):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + options.batch]]
            pipe(
                prompts[at : at + options.batch],
                generator=generators,
                num_inference_steps=options.steps,
                guidance_scale=4.0,
            )
        raw = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            generate(pipe, prompts, seeds, Path(folder) / "store", sampler=sampler)
            stored = time.perf_counter() - start
        if repeat:  # the first of each warms up
            raw_seconds.append(raw)
            store_seconds.append(stored)
    raw_all, store_all = spread(raw_seconds), spread(store_seconds)
    return {
        "case": "generation",
        "raw_images_per_second": options.pictures / raw_all["seconds"],
        "store_images_per_second": options.pictures / store_all["seconds"],
        "ratio": raw_all["seconds"] / store_all["seconds"],
        "raw": raw_all,
        "store": store_all,
    }


def texts() -> dict[str, Any]:
    """Return how many texts the judge's tower reads for 400 pictures of 20 prompts."""
    from erasure.eval.metrics.clip_score import ClipScore

    judge, read = tinyworld.load_judge(), []

    class Counting:
        def image_features(self, pictures: list[Any], /) -> torch.Tensor:
            return judge.image_features(pictures)

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
    """Return the most memory that streaming FID's Python objects and arrays take over growing numbers of pictures."""
    rng = np.random.default_rng(0)
    results = []
    for count in counts:
        metric = Fid(extractor=Given(lambda pictures: np.zeros((len(pictures), 96)), "random features"))
        tracemalloc.start()
        for _ in range(count // 100):
            metric.update_features(rng.standard_normal((100, 96), dtype=np.float32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        held = sum(rows.numel() * rows.element_size() for set_ in metric._kid._features for rows in set_)
        results.append(
            {"case": "memory", "pictures": count, "peak_kib": round(peak / 1024), "features_kib": round(held / 1024)}
        )
    return results


if __name__ == "__main__":
    main()
