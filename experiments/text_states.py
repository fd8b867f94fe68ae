"""Text states that carry a concept on the tiny world: those of its words, or those from the end of text on.

    python -m experiments.text_states --out results/text-states-tinyworld

TRCE maps the end-of-text states, UCE a concept's tokens; each rests on a claim about where a text encoder keeps the
meaning. Here the states of a sentence are exchanged, in parts, for those of the same sentence with a safe word in the
place of the concept, and the weights stay as they are: where the concept is still drawn, what was exchanged did not
carry it alone.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.eval.stats.scores import Rate
from erasure.loading import load_model
from erasure.profile import DEFAULT_MODEL
from erasure.progress import OnProgress, ProgressCounter, progress_bars
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings, sample
from erasure.tinyworld import vocabulary

from .experiment import plain_options, recorded
from .family import FAMILY

VERSION = 1
SAFE = "flower"

Exchanged = Callable[[Conditioning, int, list[int]], list[int]]
"""Gives the positions whose states are exchanged, for a row and its concept's tokens."""

PARTS: Mapping[str, Exchanged] = {
    "nothing": lambda states, row, words: [],
    "the concept's tokens": lambda states, row, words: words,
    "all tokens of the sentence": lambda states, row, words: list(range(int(states.eot[row]))),
    "the first end of text": lambda states, row, words: [int(states.eot[row])],
    "end of text and all after it": lambda states, row, words: list(range(int(states.eot[row]), states.ids.shape[1])),
    "the concept's tokens, and from end of text on": lambda states, row, words: [
        *words,
        *range(int(states.eot[row]), states.ids.shape[1]),
    ],
}


def main() -> None:
    """Exchange the states and write run.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=40, help="prompts of each concept")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json")
    recorded(experiment, parser.parse_args())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of all exchanges."""
    return record_of("text-states", VERSION, DEFAULT_MODEL, measured, options)


def record_of(
    name: str, version: int, model: str, measure: Callable[..., Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the record of an experiment that exchanges states.

    Args:
        name: Name of the experiment.
        version: Its version.
        model: Name of the model.
        measure: Function that returns the rows, as `measured` does.
        options: Options of the command.

    Raises:
        InputError: The model was not trained.
    """
    began = time.perf_counter()
    sampler = SamplingSettings.of(model)
    with progress_bars() as on_progress:
        rows = measure(load_model(model), options.prompts, sampler, on_progress)
    return {
        "benchmark": name,
        "version": version,
        "config": {**plain_options(options), "family": list(FAMILY), "safe": SAFE},
        "sampler": sampler.as_settings(),
        "rows": rows,
        **provenance(start=began),
    }


def measured(
    pipe: DiffusionPipeline, n: int, sampler: SamplingSettings, on_progress: OnProgress | None
) -> dict[str, Any]:
    """Return for each exchange how often the concept is seen, and how often the safe one.

    Args:
        pipe: The tiny world's pipeline, or one with its tokenizer.
        n: Prompts of each concept.
        sampler: Sampling settings.
        on_progress: Receives the number of images as they are made.
    """
    states, others, concepts = sentences(backbone_of(pipe), n)
    oracle = tinyworld.load_oracle()
    rows = {}
    count = ProgressCounter(on_progress, len(PARTS) * len(states), "images")
    for part, exchanged in PARTS.items():
        mixed = mixture(states, others, concepts, exchanged)
        images = []
        for start in range(0, len(mixed), sampler.batch_size):
            batch = list(range(start, min(start + sampler.batch_size, len(mixed))))
            images += sample(pipe, mixed.select(batch), [5_000_000 + row for row in batch], sampler)
            count.add(len(batch))
        reading = oracle.read(images)
        shows_concept = np.array([reading.sees(name)[row] for row, name in enumerate(concepts)])
        rows[part] = {
            "concept": Rate.of(shows_concept).as_json(),
            "safe": Rate.of(np.asarray(reading.sees(SAFE))).as_json(),
        }
    return rows


def sentences(backbone: Backbone, n: int) -> tuple[Conditioning, Conditioning, list[str]]:
    """Return sentences of the family, those with the safe word instead, and the concept of each.

    Args:
        backbone: Model that encodes them.
        n: Sentences of each concept; those whose length differs with the safe word are left out.
    """
    concepts = [name for name in FAMILY for _ in range(n)]
    prompts = [prompt for name in FAMILY for prompt in vocabulary.prompts_for(name, n, seed=2)]
    safe = [prompt.replace(name, SAFE) for name, prompt in zip(concepts, prompts, strict=True)]
    states, others = backbone.encode(prompts), backbone.encode(safe)
    keep = [row for row in range(len(prompts)) if torch.equal(states.eot[row], others.eot[row])]
    return states.select(keep), others.select(keep), [concepts[row] for row in keep]


def places(states: Conditioning, concepts: Sequence[str], exchanged: Exchanged) -> Bool[Tensor, "n tokens"]:
    """Return where the states of sentences are exchanged."""
    where: Bool[Tensor, "n tokens"] = torch.zeros(states.ids.shape, dtype=torch.bool)
    for row, name in enumerate(concepts):
        where[row, exchanged(states, row, states.word_positions(row, name))] = True
    return where


def mixture(states: Conditioning, others: Conditioning, concepts: Sequence[str], exchanged: Exchanged) -> Conditioning:
    """Return the states with those of the other sentences where they are exchanged."""
    where = places(states, concepts, exchanged).to(states.states.device)[..., None]
    return states.with_states(torch.where(where, others.states, states.states))


if __name__ == "__main__":
    main()
