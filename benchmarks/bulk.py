"""A list of names removed and written: beside the official way, and its parts beside what they need at least.

A model of Stable Diffusion 1.5's sizes with random weights is written to a folder, and names are made of syllables. Of
Stable Diffusion XL the text encoders are of full size and the denoiser is small, as nearly all of the work is theirs.

- removal: `Ledger.remove_each` of short lists of two lengths, from which a long list follows: seconds(n) = start + n
  each. Once with the trailing states of all templates, and with those of fewer. The floor is what the encoders' linear
  layers compute for them, at the rate of one such product in the same run.
- official: what published scripts do with the same prompts: each name's prompts and those of its anchor encoded one by
  one, padded to the encoder's length, and one outer product a row and layer; a long list takes n times as long as one.
- templates: on the tiny world, whose objects are removed in lists of several lengths: the part of their effect on keys
  and values behind the end of text that is left in phrasings that no eraser has, by templates with trailing states.

Seconds are those of the processor, all threads together. The writing of the edited folder is timed by `apply.py`.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.models.clip.modeling_clip import CLIPMLP

from erasure import Concept, Ledger, make_eraser, tinyworld
from erasure.backbones import backbone_of
from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import Rows
from erasure.closed_form.solve import solve
from erasure.erasers.uce import UCE
from erasure.loading import load_model
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.prompts import anchored_prompts
from erasure.training.context import FitContext
from tests import full_size, tiny

from .closed_form import SHAPES, Shapes, first, of_each_shape, outer, projections, shape_count
from .record import arguments, write_run

VERSION = 3
LONG = 1000
FEWER = (4, 2, 1)
TIMED_ROWS = 64
"""Rows that outer products are timed with, beyond one, at most; each takes as long."""
HELD_OUT = {
    "a {} near a wall": "near a wall",
    "two people looking at a {}": "two people",
    "an old {} at night": "at night",
    "my {} in the rain": "in the rain",
    "a small {} behind a fence": "behind a fence",
}


def main() -> None:
    """Measure the parts, print a line each, and write run.json where asked."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=20, help="names of the longer list")
    parser.add_argument("--official", type=int, default=2, help="names that the official way is timed with")
    parser.add_argument("--xl-names", type=int, default=3, help="names of the longer list on Stable Diffusion XL")
    parser.add_argument("--folder", type=Path, help="a model's folder that is there already")
    parser.add_argument("--lists", type=int, nargs="+", default=[4, 21], help="objects of the tiny world at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a small model and few names, to try the script")
    options = parser.parse_args()
    if options.toy:
        options.names, options.official, options.xl_names, options.lists = 4, 1, 2, [2]
    started = time.perf_counter()
    with TemporaryDirectory() as work:
        folder, large = options.folder or Path(work) / "model", Path(work) / "xl"
        if options.toy:
            tiny.sd1(vocabulary="clip").save_pretrained(folder)
            tiny.sdxl(vocabulary="clip").save_pretrained(large)
        else:
            full_size.write_model(large_encoders(), large)
            if not options.folder:
                full_size.write_model(full_size.sd15(), folder)
        results = [
            *removals("sd15", folder, Path(work), options.names, options.official, (None, *FEWER), options),
            *removals("sdxl", large, Path(work), options.xl_names, 1, (None, 1), options),
            *templates(options),
        ]
    for result in results:
        print(", ".join(f"{key} {value}" for key, value in result.items()))
    write_run(options, name="bulk", version=VERSION, results=results, started=started, torch=torch)


def large_encoders() -> DiffusionPipeline:
    """Return a pipeline of Stable Diffusion XL's text encoders without weights, and a small denoiser of such states."""
    pipe = full_size.sdxl()
    with torch.device("meta"):
        pipe.unet = tiny.unet(
            SHAPES["sdxl"].dim,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + pipe.text_encoder_2.config.projection_dim,
        )
    return pipe


def removals(
    model: str,
    folder: Path,
    work: Path,
    longer: int,
    official: int,
    numbers: Sequence[int | None],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Return the seconds of lists of names, and of the official way.

    Args:
        model: Name of the model's sizes.
        folder: Folder of the model.
        work: Folder for ledgers.
        longer: Number of names of the longer list.
        official: Number of names that the official way is timed with.
        numbers: Numbers of templates with trailing states; None is all.
        options: Options of the command line.
    """
    start = time.process_time()
    pipe = load_model(str(folder))
    load = time.process_time() - start
    concepts = [Concept(target=name, kind="style") for name in names(longer, options.seed)]
    few, rates = max(1, longer // 4), operations_a_second(pipe)
    spent = official_seconds(pipe, concepts[:official], SHAPES["toy" if options.toy else model])
    results = [{"case": "official", "model": model, "names": official, **spent, "long": LONG * sum(spent.values())}]
    uce = make_eraser("uce", trailing_templates=1)
    Ledger.open_or_create(work / f"warm-{model}", pipe, "bulk").remove(pipe, uce, concepts[:1])  # the first is slower
    for number in numbers:
        seconds, operations = {}, {}
        for count in (few, longer):
            ledger = Ledger.open_or_create(work / f"ledger-{model}-{number}-{count}", pipe, "bulk")
            uce = make_eraser("uce", trailing_templates=number)
            with counting() as counted:
                start = time.process_time()
                list(ledger.remove_each(pipe, uce, [(concept,) for concept in concepts[:count]]))
                seconds[count], operations[count] = time.process_time() - start, counted
        start = time.process_time()
        ledger.edit()
        joint = time.process_time() - start
        each = (seconds[longer] - seconds[few]) / (longer - few)
        floor = sum((operations[longer][width] - operations[few].get(width, 0)) / rate for width, rate in rates.items())
        long = load + seconds[few] - few * each + LONG * each + joint
        timed = {"names": longer, "seconds": seconds[longer], "each": each, "joint": joint, "load": load}
        timed |= {"floor_each": floor / (longer - few), "long": long, "ratio": results[0]["long"] / long}
        results.append({"case": "removal", "model": model, "trailing_templates": number, **timed})
    return results


def encoders(pipe: DiffusionPipeline) -> list[Any]:
    """Return the text encoders of a pipeline."""
    parts = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
    return [part for part in parts if part is not None]


def operations_a_second(pipe: DiffusionPipeline) -> dict[int, float]:
    """Return the float32 operations a second of a linear layer of each encoder, by its width: the best of five."""
    rates = {}
    for config in (part.config for part in encoders(pipe)):
        states, weight = torch.randn(512, config.hidden_size), torch.randn(config.hidden_size, config.intermediate_size)
        taken = []
        for _ in range(6):
            start = time.process_time()
            states @ weight
            taken.append(time.process_time() - start)
        rates[config.hidden_size] = 2 * states.shape[0] * weight.numel() / min(taken[1:])
    return rates


@contextmanager
def counting() -> Iterator[dict[int, float]]:
    """Give the operations of the encoders' linear layers inside a `with`, by the layer's width."""
    operations: dict[int, float] = {}

    def count(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, CLIPMLP):  # one a layer, beside four products of the attention
            width, between = module.config.hidden_size, module.config.intermediate_size
            rows = inputs[0].numel() // width
            operations[width] = operations.get(width, 0.0) + 2.0 * rows * width * (4 * width + 2 * between)

    hook = register_module_forward_pre_hook(count)
    try:
        yield operations
    finally:
        hook.remove()


def names(count: int, seed: int) -> list[str]:
    """Return distinct names of a person, made of syllables."""
    draw = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeio"]
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        parts = ("".join(draw.choices(syllables, k=draw.choice((2, 3)))).capitalize() for _ in range(2))
        distinct[" ".join(parts)] = None
    return list(distinct)


def official_seconds(pipe: DiffusionPipeline, concepts: Sequence[Concept], shapes: Shapes) -> dict[str, float]:
    """Return the seconds a name of encoding its prompts one by one, and of one outer product a row and layer."""
    backbone = backbone_of(pipe)
    prompts = [prompt for concept in concepts for pair in anchored_prompts(concept) for prompt in pair]
    start = time.process_time()
    for prompt in prompts:
        backbone.encode([prompt])
    encoding = time.process_time() - start
    rows = UCE().rows_of(concepts, FitContext(backbone=backbone))
    alone = Rows.of(joined_rows([rows]).erased_rows(), [], reg=0.5, dim=rows.targets.shape[1])
    weights = projections(replace(shapes, dim=rows.targets.shape[1]), seed=0)
    timed = min(TIMED_ROWS, len(alone.targets) - 1)
    products = 0.0
    for weight in of_each_shape(weights):
        more, one = (outer_seconds(first(alone, count), weight) for count in (1 + timed, 1))
        products += shape_count(weights, weight) * (more - one) / timed * len(alone.targets)
    return {"encoding": encoding / len(concepts), "products": products / len(concepts)}


def outer_seconds(rows: Rows, weight: torch.Tensor) -> float:
    """Return the seconds of the outer products of one layer, and of what is done once for all of them."""
    start = time.process_time()
    outer(rows, weight)
    return time.process_time() - start


def templates(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the part of removed objects that is left, and the move of the others, by list and templates."""
    backbone = backbone_of(tinyworld.load())
    profile = profile_of(DEFAULT_MODEL)
    kinds = {name: profile.completed([{"target": name}])[0].get("kind", "object") for name in profile.concepts}
    objects = [name for name, kind in kinds.items() if kind == "object"]
    weights = backbone.parameters(backbone.sites(reads="text").__contains__).values()
    gram = sum((weight.detach().double().T @ weight.detach().double() for weight in weights), torch.zeros(()))
    results = []
    for count in options.lists:
        removed = objects[:count]
        others = tuple(name for name in profile.concepts if name not in removed)
        for number in (None, *FEWER):
            uce = UCE(trailing_templates=number)
            concepts = [Concept(target=name, preserve=others) for name in removed]
            rows = [uce.rows_of([concept], FitContext(backbone=backbone)) for concept in concepts]
            map_ = solve(joined_rows(rows)).matrix()
            left = left_behind(backbone, map_, gram, removed)
            case = {"case": "templates", "list": count, "trailing_templates": number, "left": float(left.mean())}
            case |= {"left_most": float(left.quantile(0.9)), "moved": moved(backbone, map_, gram, others)}
            results.append(case)
    return results


def left_behind(backbone: Any, map_: torch.Tensor, gram: torch.Tensor, removed: Sequence[str]) -> torch.Tensor:
    """Return for each held-out prompt the part of the name's effect that is left behind the end of text."""
    pairs = [(phrase.format(name), blank) for name in removed for phrase, blank in HELD_OUT.items()]
    named, blanks = (backbone.read(prompts) for prompts in zip(*pairs, strict=True))
    parts = []
    for row, (end, other) in enumerate(zip(named.eot.tolist(), blanks.eot.tolist(), strict=True)):
        length = named.states.shape[1] - max(end, other)
        state = named.states[row, end : end + length].double()
        without = blanks.states[row, other : other + length].double()
        effect = state - without
        parts.append((((state @ map_.T - without) @ gram) * effect).sum() / ((effect @ gram) * effect).sum())
    return torch.stack(parts)


def moved(backbone: Any, map_: torch.Tensor, gram: torch.Tensor, others: Sequence[str]) -> float:
    """Return the squared move of other concepts' keys and values, relative to their effect on them."""
    read = backbone.read([f"a photo of a {name}" for name in others]).states.double()
    effect, move = (read - backbone.read([""]).states.double()).flatten(0, 1), (read @ map_.T - read).flatten(0, 1)
    return float(((move @ gram) * move).sum() / ((effect @ gram) * effect).sum())


if __name__ == "__main__":
    main()
