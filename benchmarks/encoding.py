"""Encoding many prompts, with the text encoder of Stable Diffusion 1.5: its architecture, random weights, CLIP's words.

- one by one: each prompt by itself, padded to 77 tokens, as a loop over concepts encodes them; a few are timed, and the
  rest is extrapolated;
- in batches: `Backbone.encode`, each distinct prompt once; what reads the states of the padding needs this;
- in batches, bfloat16: the same with the encoder in half precision; the run records how far its states are apart;
- to the end of text: `Backbone.encode(..., trailing=False)`, which stops at the end of each text; the run checks that
  the states up to there are the same.
"""

import copy
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from erasure.backbones import Backbone, backbone_of
from erasure.prompts import fill, templates
from erasure.tinyworld import vocabulary
from tests import tiny

from .record import arguments, peak_mib, reset_peak, resident_mib, spread, write_run

VERSION = 2


def main() -> None:
    """Time each way, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--distinct", type=float, default=0.8, help="share of the prompts that differ from all others")
    parser.add_argument("--alone", type=int, default=64, help="prompts that are timed one by one")
    parser.add_argument("--whole", type=int, default=500, help="prompts that are timed in batches with padding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a small encoder and few prompts, to try the script")
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.toy:
        options.prompts, options.alone, options.whole = 200, 8, 100
    started = time.perf_counter()
    backbone = backbone_of(model(toy=options.toy, seed=options.seed))
    halved = in_half_precision(backbone)
    prompts = many_prompts(options.prompts, options.distinct, seed=options.seed)
    results = [
        case(backbone, "one by one", prompts, options.alone, options.repeats),
        case(backbone, "in batches", prompts, options.whole, options.repeats),
        case(halved, "in batches, bfloat16", prompts, options.whole, options.repeats),
        case(backbone, "to the end of text", prompts, len(prompts), 1),
    ]
    ours = results[-1]["seconds"]
    apart = difference(backbone, prompts[: options.alone])
    assert apart < 1e-3, f"the states up to the end of text are apart by {apart}"
    for result in results:
        result["ratio"] = result["seconds"] / ours
        note = f" (timed with {result['timed']:,}, extrapolated)" if result["extrapolated"] else ""
        print(
            f"{result['case']}: {result['seconds']:.1f} s{note}, {result['ratio']:.1f} x,"
            f" {result['tokens']:,} tokens read, peak {result['peak_mib']:.0f} MiB"
        )
    results[-1]["relative_difference"] = apart
    results[-2]["relative_difference"] = rounding(backbone, halved, prompts[: options.alone])
    print(f"bfloat16: states are apart by {results[-2]['relative_difference']:.4f} of their norm")
    write_run(options, name="encoding", version=VERSION, results=results, started=started, torch=torch)


def model(*, toy: bool, seed: int) -> Any:
    """Return a pipeline with a text encoder of Stable Diffusion 1.5's size and a small denoiser, which is not used."""
    pipe = tiny.sd1(vocabulary="clip", seed=seed)
    if not toy:
        config = pipe.text_encoder.config
        config.update({"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768})
        config.update({"num_hidden_layers": 12, "num_attention_heads": 12})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe.text_encoder = CLIPTextModel(config).eval()
    return pipe


def many_prompts(n: int, distinct: float, *, seed: int) -> list[str]:
    """Return prompts about names of one to three made-up words, some of them more than once, in random order."""
    draw = random.Random(seed)
    words = [word for name in vocabulary.concepts() for word in name.split()]
    frames = [*templates("object"), *templates("style")]
    unlike: dict[str, None] = {}
    while len(unlike) < max(1, round(n * distinct)):
        name = " ".join("".join(draw.sample(words, 2)) for _ in range(draw.randint(1, 3)))
        unlike[fill(draw.choice(frames), name)] = None
    prompts = [*unlike, *draw.choices(list(unlike), k=n - len(unlike))]
    draw.shuffle(prompts)
    return prompts


def case(backbone: Backbone, name: str, prompts: list[str], timed_with: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of one way for all prompts, extrapolated from some of them where that is asked for.

    Of what reads each distinct prompt once, only the distinct ones count.
    """
    backbone.encode(prompts[:2])  # warms up
    some = prompts[:timed_with]
    seconds = []
    reset_peak()
    before = resident_mib()
    with counted_tokens(backbone) as tokens:
        for _ in range(repeats):
            tokens.clear()
            start = time.perf_counter()
            encoded(backbone, name, some)
            seconds.append(time.perf_counter() - start)
    whole, part = (len(prompts), len(some)) if name == "one by one" else (len(set(prompts)), len(set(some)))
    return {
        "case": name,
        "prompts": len(prompts),
        "distinct": len(set(prompts)),
        "timed": len(some),
        "extrapolated": len(some) < len(prompts),
        "seconds": spread(seconds)["seconds"] * whole / part,
        "all_seconds": seconds,
        "tokens": round(sum(tokens) * whole / part),
        "peak_mib": peak_mib() - before,
    }


def encoded(backbone: Backbone, name: str, prompts: list[str]) -> list[Tensor]:
    """Return the states by one way."""
    match name:
        case "one by one":
            return [backbone.encode([prompt]).states for prompt in prompts]
        case "in batches" | "in batches, bfloat16":
            return [backbone.encode(prompts).states]
        case _:
            return [backbone.encode(prompts, trailing=False).states]


def difference(backbone: Backbone, prompts: list[str]) -> float:
    """Return the relative difference of the states up to the end of text with padding: |a - b|_F / |a|_F."""
    whole, cut = backbone.encode(prompts), backbone.encode(prompts, trailing=False)
    length = cut.states.shape[1]
    inside = torch.arange(length) <= whole.eot[:, None]
    reference, got = whole.states[:, :length][inside], cut.states[inside]
    return float(torch.linalg.norm(reference - got) / torch.linalg.norm(reference))


def in_half_precision(backbone: Backbone) -> Backbone:
    """Return the same model with its text encoder in bfloat16."""
    pipe = copy.copy(backbone.pipe)
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder).to(torch.bfloat16)
    return backbone_of(pipe)


def rounding(backbone: Backbone, halved: Backbone, prompts: list[str]) -> float:
    """Return the relative difference of all states of both, the mean state taken off: |a - b|_F / |a - mean a|_F."""
    whole, rounded = backbone.encode(prompts).states, halved.encode(prompts).states.float()
    moved = whole - whole.mean(dim=(0, 1))  # what all states share is of no prompt
    return float(torch.linalg.norm(whole - rounded) / torch.linalg.norm(moved))


@contextmanager
def counted_tokens(backbone: Backbone) -> Iterator[list[int]]:
    """Note how many tokens each call of the text encoder reads."""
    counts: list[int] = []

    def note(module: nn.Module, args: Any) -> None:
        counts.append(args[0].numel())

    with backbone.component("text_encoder").register_forward_pre_hook(note):
        yield counts


if __name__ == "__main__":
    main()
