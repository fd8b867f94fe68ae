"""Text states exchanged before one block of the tiny world's transformer, to see where joint attention has a concept.

    python -m experiments.joint_states --out results/tinyworld-flux/joint-states

A block of joint attention writes to the text's states as well as to the image's, so what the encoder said of a word may
lie elsewhere from the second block on. Here the text's states before one block are, in every denoising step, those of
the same image with a safe word in the place of the concept; the sentence vector is the safe one's throughout. A concept
that is drawn all the same had left the exchanged states before that block.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool
from torch import Tensor, nn

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.backbones.conditioning import Conditioning
from erasure.eval.stats.scores import Rate
from erasure.progress import OnProgress, ProgressCounter
from erasure.sampling import SamplingSettings, sample

from .experiment import recorded
from .text_states import PARTS, SAFE, places, record_of, sentences

VERSION = 1
MODEL: Final = "tinyworld-flux"
EXCHANGED: Final = (
    "the concept's tokens",
    "all tokens of the sentence",
    "the concept's tokens, and from end of text on",
)
"""Parts of a sentence whose states are exchanged."""


def main() -> None:
    """Exchange the states and write run.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=12, help="prompts of each concept")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json")
    recorded(experiment, parser.parse_args())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of all exchanges.

    Raises:
        InputError: The transformer was not trained.
    """
    return record_of("joint-states", VERSION, MODEL, measured, options)


def measured(
    pipe: DiffusionPipeline, n: int, sampler: SamplingSettings, on_progress: OnProgress | None
) -> list[dict[str, Any]]:
    """Return the rates of the concept and of the safe one for each part and block.

    Args:
        pipe: Pipeline of a transformer whose blocks read image and text together.
        n: Prompts of each concept.
        sampler: Sampling settings.
        on_progress: Receives the number of images as they are made.
    """
    backbone = backbone_of(pipe)
    states, safe, concepts = sentences(backbone, n)
    mixed = states.with_states(states.states, safe.pooled)
    stack = blocks(backbone.denoiser)
    nothing = torch.zeros(states.ids.shape, dtype=torch.bool)
    cases: list[tuple[str, int | None, Conditioning, Tensor]] = [
        ("nothing", None, states, nothing),
        ("the sentence vector alone", None, mixed, nothing),
    ]
    for part in EXCHANGED:
        where = places(states, concepts, PARTS[part])
        cases += [(part, i, mixed, where) for i in range(len(stack))]
    count, rows = ProgressCounter(on_progress, len(cases) * len(states), "images"), []
    for part, i, read, where in cases:
        images = []
        for start in range(0, len(states), sampler.batch_size):
            batch = list(range(start, min(start + sampler.batch_size, len(states))))
            texts, seeds = read.select(batch), [6_000_000 + row for row in batch]
            with exchanged_before(stack[i or 0], backbone.denoiser, texts, safe.select(batch), where[batch]):
                images += sample(pipe, texts, seeds, sampler)
            count.add(len(batch))
        reading = tinyworld.load_oracle().read(images)
        shown = np.array([reading.sees(name)[row] for row, name in enumerate(concepts)])
        rows.append(
            {
                "part": part,
                "block": i,
                "concept": Rate.of(shown).as_json(),
                "safe": Rate.of(np.asarray(reading.sees(SAFE))).as_json(),
            }
        )
    return rows


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer in the order in which they read the text."""
    lists = (getattr(denoiser, name) for name in ("transformer_blocks", "single_transformer_blocks"))
    return [cast("nn.Module", block) for each in lists for block in each]


@contextmanager
def exchanged_before(
    block: nn.Module, denoiser: nn.Module, read: Conditioning, safe: Conditioning, where: Bool[Tensor, "n tokens"]
) -> Iterator[None]:
    """Give a block the text states of other sentences on the same image, for the length of a `with`.

    Args:
        block: Block of the denoiser.
        denoiser: Transformer.
        read: Sentences whose states are exchanged; calls for others, such as the empty prompt, are left alone.
        safe: Other sentences, one for each.
        where: Places that are exchanged; without any the model is as before.
    """
    others: list[Tensor] = []
    reading = False

    def read_others(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal reading
        del args
        others.clear()
        if not where.any() or not torch.equal(kwargs["encoder_hidden_states"], read.states):
            return
        reading = True
        try:
            module.forward(**{**kwargs, "encoder_hidden_states": safe.states})
        finally:
            reading = False

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        del module
        states = kwargs["encoder_hidden_states"]
        if reading:
            others.append(states)
            return None
        if not others:
            return None
        return args, {**kwargs, "encoder_hidden_states": torch.where(where[..., None], others[-1], states)}

    handles = (
        denoiser.register_forward_pre_hook(read_others, with_kwargs=True),
        block.register_forward_pre_hook(exchange, with_kwargs=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
