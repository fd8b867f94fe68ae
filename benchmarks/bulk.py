"""A list of names removed and written: beside the official way, and its parts beside what they need at least.

A model of Stable Diffusion 1.5's sizes with random weights is written to a folder, and names are made of syllables.

- removal: `Ledger.remove_each` of short lists of two lengths, from which a long list follows: seconds(n) = start + n
  each. Once with the trailing states of all templates, and with those of fewer, as long lists have them.
- official: what published scripts do with the same prompts: each name's prompts and those of its anchor encoded one by
  one, padded to the encoder's length, and one outer product a row and layer; a long list takes n times as long as one.
- templates: on the tiny world, whose objects are removed in lists of several lengths: the part of their effect on keys
  and values behind the end of text that is left in phrasings that no eraser has, by templates with trailing states.

Seconds are those of the processor, all threads together. The writing of the edited folder is timed by `apply.py`.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline

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

from .closed_form import SHAPES, outer, projections
from .record import arguments, write_run

VERSION = 2
LONG = 1000
FEWER = (4, 2, 1)
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
    parser.add_argument("--folder", type=Path, help="a model's folder that is there already")
    parser.add_argument("--lists", type=int, nargs="+", default=[4, 21], help="objects of the tiny world at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toy", action="store_true", help="a small model and few names, to try the script")
    options = parser.parse_args()
    if options.toy:
        options.names, options.official, options.lists = 4, 1, [2]
    started = time.perf_counter()
    with TemporaryDirectory() as work:
        folder = options.folder or Path(work) / "model"
        if options.toy:
            tiny.sd1(vocabulary="clip").save_pretrained(folder)
        elif not options.folder:
            full_size.write_model(full_size.sd15(), folder)
        results = [*removals(folder, Path(work), options), *templates(options)]
    for result in results:
        print(", ".join(f"{key} {value}" for key, value in result.items()))
    write_run(options, name="bulk", version=VERSION, results=results, started=started, torch=torch)


def removals(folder: Path, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the seconds of lists of names, and of the official way."""
    start = time.process_time()
    pipe = load_model(str(folder))
    load = time.process_time() - start
    concepts = [Concept(target=name, kind="style") for name in names(options.names, options.seed)]
    few = max(1, options.names // 4)
    official = official_seconds(pipe, concepts[: options.official], toy=options.toy)
    results = [{"case": "official", "names": options.official, **official, "long": LONG * sum(official.values())}]
    uce = make_eraser("uce", trailing_templates=1)
    Ledger.open_or_create(work / "warm", pipe, "bulk").remove(pipe, uce, concepts[:1])  # the first is slower
    for number in (None, *FEWER):
        seconds = {}
        for count in (few, options.names):
            ledger = Ledger.open_or_create(work / f"ledger-{number}-{count}", pipe, "bulk")
            start = time.process_time()
            uce = make_eraser("uce", trailing_templates=number)
            list(ledger.remove_each(pipe, uce, [(concept,) for concept in concepts[:count]]))
            seconds[count] = time.process_time() - start
        start = time.process_time()
        ledger.edit()
        joint = time.process_time() - start
        each = (seconds[options.names] - seconds[few]) / (options.names - few)
        long = load + seconds[few] - few * each + LONG * each + joint
        ratio = results[0]["long"] / long
        timed = {"names": options.names, "seconds": seconds[options.names], "each": each, "joint": joint, "load": load}
        results.append({"case": "removal", "trailing_templates": number, **timed, "long": long, "ratio": ratio})
    return results


def names(count: int, seed: int) -> list[str]:
    """Return distinct names of a person, made of syllables."""
    draw = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeio"]
    distinct: dict[str, None] = {}
    while len(distinct) < count:
        parts = ("".join(draw.choices(syllables, k=draw.choice((2, 3)))).capitalize() for _ in range(2))
        distinct[" ".join(parts)] = None
    return list(distinct)


def official_seconds(pipe: DiffusionPipeline, concepts: Sequence[Concept], *, toy: bool) -> dict[str, float]:
    """Return the seconds a name of encoding its prompts one by one, and of one outer product a row and layer."""
    backbone = backbone_of(pipe)
    prompts = [prompt for concept in concepts for pair in anchored_prompts(concept) for prompt in pair]
    start = time.process_time()
    for prompt in prompts:
        backbone.encode([prompt])
    encoding = time.process_time() - start
    rows = UCE().rows_of(concepts, FitContext(backbone=backbone))
    alone = Rows.of(joined_rows([rows]).erased_rows(), [], reg=0.5, dim=rows.targets.shape[1])
    weights = projections(SHAPES["sd15"] if not toy else replace(SHAPES["toy"], dim=rows.targets.shape[1]), seed=0)
    start = time.process_time()
    for weight in weights:
        outer(alone, weight)
    products = time.process_time() - start
    return {"encoding": encoding / len(concepts), "products": products / len(concepts)}


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
