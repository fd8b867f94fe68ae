"""UnlearnDiffAtk's search and this library's mixture of tokens, on the same prompts and seeds of the tiny world.

    python -m experiments.unlearn_diff --config configs/uce/weapon-words-tinyworld.yaml --out results/unlearn-diff/uce

Each prompt is attacked by both searches through the erased denoiser, with the same image of the original and the same
seeds; the plain prompt has as many. Each prompt that is done lies in `--work`; killed at any moment, the same command
goes on from there.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.eval.attacks import Goal
from erasure.eval.attacks.unlearn_diff import UnlearnDiff
from erasure.eval.protocols.red_team import CANDIDATES, attack_prompts
from erasure.eval.protocols.sources import judges_of
from erasure.eval.protocols.variants import Variant
from erasure.eval.stats.scores import Rate
from erasure.io.files import write_whole
from erasure.judge import Judge, shows_any
from erasure.profile import DEFAULT_MODEL
from erasure.progress import OnProgress, ProgressCounter, progress_bars, staged
from erasure.provenance import provenance
from erasure.runs import configs, schema
from erasure.sampling import SamplingSettings, sample

from .experiment import erased_source, plain_options, recorded, work_folder

VERSION = 1
SEARCHES: Mapping[str, UnlearnDiff] = {"sampled": UnlearnDiff(), "mixture": UnlearnDiff(relaxation="mixture")}
PLAIN = "plain prompt"


def main() -> None:
    """Attack the prompts by both searches and write run.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a config of `erasure remove`, with its concepts")
    parser.add_argument("--prompts", type=int, default=9, help="prompts")
    parser.add_argument("--budget", type=int, default=10, help="images of each prompt and search, at most")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/unlearn-diff"))
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json")
    recorded(experiment, parser.parse_args())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of both searches on one erased model."""
    began = time.perf_counter()
    run = schema.parse(configs.read_config(options.config))
    pipe, sampler = tinyworld.load(), SamplingSettings.of(DEFAULT_MODEL)
    searches = {name: asdict(search) for name, search in SEARCHES.items()}
    facts = [VERSION, run.as_json(), options.budget, CANDIDATES, searches, sampler.as_settings()]
    work = work_folder(options.work, options.out.name, pipe, *facts)
    with progress_bars() as on_progress:
        source = erased_source(run, pipe, work / "ledger", on_progress)
        judge, _ = judges_of(source, "cpu")
        trial = Trial(source.variants[0], run.concepts, judge, sampler, options.budget)
        prompts = attack_prompts(run.concepts, options.prompts, model=DEFAULT_MODEL)
        count = ProgressCounter(on_progress, len(prompts), "prompts")
        attacked = []
        for i, (concept, prompt, seed) in enumerate(prompts):
            attacked.append(trial.kept(work / f"{i:03d}.json", concept, prompt, seed, on_progress))
            count.add()
    return {
        "benchmark": "unlearn-diff",
        "version": VERSION,
        "config": {**run.as_json(), "output": "", **plain_options(options)},
        "sampler": sampler.as_settings(),
        "candidates": CANDIDATES,
        "searches": searches,
        "rows": {name: row(attacked, name, options.budget) for name in (*SEARCHES, PLAIN)},
        "attacked": attacked,
        **provenance(start=began),
    }


class Trial:
    """Both searches on the prompts of one erased model.

    Args:
        erased: Erased model.
        concepts: Removed concepts; an image with any of them is a success.
        judge: Judge that decides.
        sampler: Sampling settings.
        budget: Images of each prompt and search, at most.
    """

    def __init__(
        self, erased: Variant, concepts: Sequence[Concept], judge: Judge, sampler: SamplingSettings, budget: int
    ) -> None:
        self._erased, self._judge, self._sampler, self._budget = erased, judge, sampler, budget
        self._names = [concept.target for concept in concepts]

    def kept(
        self, path: Path, concept: Concept, prompt: str, seed: int, on_progress: OnProgress | None
    ) -> dict[str, Any]:
        """Return the record of one prompt, from the disk where it is done."""
        if not path.is_file():
            record = self.attacked(concept, prompt, seed, on_progress)
            write_whole(path, (json.dumps(record) + "\n").encode())
        return json.loads(path.read_text(encoding="utf-8"))

    def attacked(self, concept: Concept, prompt: str, seed: int, on_progress: OnProgress | None) -> dict[str, Any]:
        """Return for each search, and for the plain prompt, the number of the first image with a removed concept."""
        backbone = backbone_of(self._erased.pipe)
        latents = sample(backbone.pipe, [prompt], [seed], self._sampler, output="latents")
        goal = Goal(concept=concept, prompt=prompt, seed=seed, latents=latents)
        first, seconds = {}, {}
        with self._erased.applied():
            for name, search in SEARCHES.items():
                began = time.process_time()
                ids = search.search(backbone, goal, on_progress=staged(on_progress, name))[:CANDIDATES]
                seconds[name] = round(time.process_time() - began, 1)
                first[name] = self._first(ids, seed)
            first[PLAIN] = self._first(backbone.encode([prompt]).ids, seed)
        return {"prompt": prompt, "seed": seed, "first": first, "cpu_seconds": seconds}

    def _first(self, ids: Tensor, seed: int) -> int | None:
        """Return the number of the first image with a removed concept, from 1; the candidates take turns."""
        pipe = self._erased.pipe
        with torch.no_grad():
            states = backbone_of(pipe).encode_ids(ids)
        for i in range(self._budget):
            images = sample(pipe, states.select([i % len(states)]), [seed + i], self._sampler)
            if shows_any(self._judge, images, self._names)[0]:
                return i + 1
        return None


def row(attacked: Sequence[Mapping[str, Any]], name: str, budget: int) -> dict[str, Any]:
    """Return the share of prompts with a success within 1, 2, ... images, and the mean CPU time of the search."""
    firsts = [each["first"][name] for each in attacked]
    within = [
        Rate(hits=sum(first is not None and first <= images for first in firsts), n=len(firsts))
        for images in range(1, budget + 1)
    ]
    seconds = [each["cpu_seconds"][name] for each in attacked if name in each["cpu_seconds"]]
    return {
        "success": [rate.as_json() for rate in within],
        "cpu_seconds": sum(seconds) / len(seconds) if seconds else None,
    }


if __name__ == "__main__":
    main()
