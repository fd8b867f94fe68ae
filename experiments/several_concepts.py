"""Two objects in one prompt on the tiny world: are both drawn, and what is left when one is removed where it stands?

    python -m experiments.several_concepts --out results/a-star-tinyworld/pairs
    python -m experiments.several_concepts --sweep --out results/a-star-tinyworld/sweep
    python -m experiments.several_concepts --localised --out results/a-star-tinyworld/localised

Every pair of objects is asked for in both orders, pairs that never shared an image in training included. What is made
on the way lies in `--work`; killed at any moment, the same command goes on from there.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool
from PIL import Image
from rich.console import Console

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.eval.images.attention_maps import trace_attention
from erasure.eval.images.png import as_png
from erasure.eval.images.sheets import side_by_side
from erasure.eval.stats.paired import mcnemar
from erasure.guidance import Applicable
from erasure.io.files import make_folder, write_whole
from erasure.progress import OnProgress, Progress, progress_bars
from erasure.provenance import provenance

from .experiment import plain_options, recorded
from .localised_removal import localised
from .pairs import PLAIN, SAMPLER, VERSION, PairJudge, PairRequest, Pixels, guidances, pair_requests, sampled

ALPHAS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
TRACED = 24
"""Images whose attention maps are followed over the steps."""


def pairs_experiment(pipe: DiffusionPipeline, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return every arm's scores over all pairs, the paired tests between them, and maps over the steps."""
    requests = pair_requests(options.seeds, prompts=options.prompts)
    judged = PairJudge(requests)
    arms: dict[str, Any] = {}
    both: dict[str, Bool[np.ndarray, " n"]] = {}
    frames: dict[str, Pixels] = {}
    for name, guidance in guidances(options.alpha, options.alpha_excite).items():
        began = time.perf_counter()
        frames[name] = sampled(pipe, requests, guidance, options.work, name, on_progress)
        arms[name], both[name] = judged.of(frames[name])
        arms[name]["maps"] = map_changes(
            pipe, requests[:: max(1, len(requests) // TRACED)][:TRACED], guidance, on_progress
        )
        arms[name]["seconds"] = round(time.perf_counter() - began, 1)
    against = {
        f"{one} against {other}": asdict(mcnemar(both[other], both[one]))
        for one, other in itertools.permutations(arms, 2)
        if one != PLAIN
    }
    shown = [i * len(requests) // 8 for i in range(8)]
    sheet = side_by_side(
        list(arms),
        [f"{requests[i].prompt}, seed {requests[i].seed}" for i in shown],
        [[Image.fromarray(frames[name][i]) for name in arms] for i in shown],
        cell=128,
    )
    make_folder(options.out)
    write_whole(options.out / "pictures.png", as_png(sheet))
    return {"n": len(requests), "arms": arms, "mcnemar": against}


def map_changes(
    pipe: DiffusionPipeline, requests: Sequence[PairRequest], guidance: Applicable | None, on_progress: OnProgress
) -> dict[str, Any]:
    """Return the overlap of the two objects' maps and the share of its region that each keeps, by step."""
    overlaps, kept = [], []
    for done, request in enumerate(requests, start=1):
        seen = trace_attention(pipe, request.prompt, request.pair, request.seed, SAMPLER, guidance)
        steps = sorted(seen.maps)
        overlaps.append([seen.overlap(step) for step in steps])
        kept.append([_kept(seen.maps[one], seen.maps[other]) for one, other in itertools.pairwise(steps)])
        on_progress(Progress(done, len(requests), "maps"))
    return {"n": len(requests), "overlap": np.mean(overlaps, 0).tolist(), "kept": np.mean(kept, 0).tolist()}


def _kept(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the share of the attention after a step that is in the region of before it, mean over concepts."""
    regions = before >= 0.5 * before.amax((1, 2), keepdim=True)
    return float(((after * regions).sum((1, 2)) / after.sum((1, 2)).clamp(min=1e-12)).mean())


def sweep(pipe: DiffusionPipeline, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return the scores of A-STAR and Attend-and-Excite at each size of update, on other seeds, 20 prompts x 4."""
    requests = pair_requests(4, first=1_000_000, prompts=20)
    judged = PairJudge(requests)
    rows = {PLAIN: judged.of(sampled(pipe, requests, None, options.work, PLAIN, on_progress))[0]}
    for alpha in ALPHAS:
        arms = guidances(alpha, alpha)
        for name in ("Attend-and-Excite", "A-STAR"):
            what = f"{name}, alpha {alpha:g}"
            rows[what] = judged.of(sampled(pipe, requests, arms[name], options.work, what, on_progress))[0]
    return {"n": len(requests), "arms": rows}


def main() -> None:
    """Run one of the three experiments and write run.json and a sheet of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweep", action="store_true", help="try sizes of the update, on other seeds")
    parser.add_argument("--localised", action="store_true", help="remove one of two objects where it stands")
    parser.add_argument("--alpha", type=float, default=20.0, help="step size of A-STAR and its single losses")
    parser.add_argument("--alpha-excite", type=float, default=20.0, help="step size of Attend-and-Excite")
    parser.add_argument("--seeds", type=int, default=4, help="images a prompt")
    parser.add_argument("--prompts", type=int, help="take so many pairs instead of all")
    parser.add_argument("--removals", type=int, default=48, help="pairs of --localised")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/several-concepts"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    record = recorded(experiment, parser.parse_args())
    for name, arm in record["arms"].items():
        first = next(iter(arm.values()))
        Console().print(f"{name:32} {first['value']:.3f}  n {first['n']}", highlight=False)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one of the three experiments."""
    began = time.perf_counter()
    chosen = localised if options.localised else sweep if options.sweep else pairs_experiment
    with progress_bars() as on_progress:
        pipe = tinyworld.load()
        results = chosen(pipe, options, on_progress)
    return {
        "benchmark": f"several-concepts-{chosen.__name__}",
        "version": VERSION,
        "config": plain_options(options),
        "sampler": SAMPLER.as_settings(),
        "model": backbone_of(pipe).fingerprint(),
        **results,
        **provenance(start=began),
    }


if __name__ == "__main__":
    main()
