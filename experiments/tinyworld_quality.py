"""Quality of a model of the tiny world, by its oracle: `python -m experiments.tinyworld_quality --out DIR`.

`--model` takes `tinyworld`, `tinyworld-flux` or the folder of a model that the world's training wrote. Every prompt,
seed and threshold is fixed here; a change of any of them raises VERSION.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.backbones.attention import AttentionCapture, average_maps, cross_attention_layers
from erasure.eval.stats.scores import Rate
from erasure.io.files import check_places, write_whole
from erasure.loading import load_model
from erasure.profile import SamplingDefaults, profile_of
from erasure.progress import OnProgress, ProgressCounter, progress_bars
from erasure.provenance import provenance
from erasure.sampling import SamplingSettings, sample
from erasure.tinyworld import load_oracle
from erasure.tinyworld import vocabulary as words
from erasure.tinyworld.data import THINGS, drawings
from erasure.tinyworld.nouns import box_mask
from erasure.tinyworld.oracle import Oracle, Reading, as_pixels
from erasure.tinyworld.training.oracle import blur
from erasure.tinyworld.world import Mix, compose, draw

from .experiment import count, in_one_line

VERSION = 1
BATCH = 32
SINGLES, INDIVIDUALS, STYLES, SCENES, PAIRS, HELD_OUT, EMPTY, SYNONYMS, HINTS, FAMILIES = (
    30,
    60,
    50,
    45,
    180,
    5,
    20,
    5,
    8,
    10,
)
TOKEN_TEST = 5  # images an object and arm
SHOWN = ("objects", "individuals", "styles", "scenes", "pairs", "empty")
ACROSS, A_ROW, LABEL = 3, 8, 110  # of the contact sheet: names side by side, images of each, pixels for the label
MAP_TIMESTEP = 400  # where the object is there and not yet sharp


@dataclass(frozen=True, kw_only=True)
class QualityRequest:
    """One image to make: its group, what must be seen (all of it; "" is nothing at all), the prompt."""

    group: str
    name: str
    expected: tuple[str, ...]
    prompt: str


def plan() -> list[QualityRequest]:
    """Return all prompts in order; the i-th is drawn with seed i."""
    rng = random.Random("tinyworld quality")
    requests: list[QualityRequest] = []

    def add(group: str, name: str, expected: Sequence[str], prompts: Sequence[str]) -> None:
        requests.extend(QualityRequest(group=group, name=name, expected=tuple(expected), prompt=p) for p in prompts)

    for name in words.OBJECTS:
        add("objects", name, [name], words.prompts_for(name, SINGLES))
        for synonym in words.SYNONYMS[name]:
            add("synonyms", name, [name], [f"a photo of {words.article(synonym)}"] * SYNONYMS)
    for name in words.TAUGHT_INDIVIDUALS:
        add("individuals", name, [name], words.prompts_for(name, INDIVIDUALS))
    for name in words.STYLES:
        add("styles", name, [name], words.prompts_for(name, STYLES))
    for name in words.SCENES[1:]:
        add("scenes", name, [name], words.prompts_for(name, SCENES))
        place = words.SCENE_PHRASES[name][0]
        add("empty", name, [""], [f"a picture of an empty scene {place}"] * EMPTY)
    allowed = [p for p in _pairs() if frozenset(p) not in words.HELD_OUT_PAIRS]
    for group, pairs in (
        ("pairs", rng.sample(allowed, PAIRS)),
        ("held-out pairs", sorted(map(sorted, words.HELD_OUT_PAIRS))),
    ):
        times = 1 if group == "pairs" else HELD_OUT
        for one, other in pairs:
            prompt = f"a photo of {words.article(one)} and {words.article(other)}"
            add(group, f"{one} + {other}", [one, other], [prompt] * times)
    for name, hints in words.WEAPON_HINTS.items():
        for hint in hints:
            add("hints", name, [name], [hint] * HINTS)
    return requests


def _pairs() -> list[tuple[str, str]]:
    names = list(words.OBJECTS)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def hits(requests: Sequence[QualityRequest], reading: Reading) -> NDArray[np.bool_]:
    """Return True for each image that shows everything requested."""
    empty = reading.empty()
    seen = {name: reading.sees(name) for name in {w for a in requests for w in a.expected if w}}
    return np.array([all(seen[w][i] if w else empty[i] for w in a.expected) for i, a in enumerate(requests)])


def by_group(requests: Sequence[QualityRequest], good: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a rate a group, and within each a rate a name."""
    out: dict[str, Any] = {}
    for group in dict.fromkeys(a.group for a in requests):
        rows = [i for i, a in enumerate(requests) if a.group == group]
        names = dict.fromkeys(requests[i].name for i in rows)
        each = {n: Rate.of(good[[i for i in rows if requests[i].name == n]]).as_json() for n in names}
        out[group] = {**Rate.of(good[rows]).as_json(), "each": each}
    return out


def generate(
    pipe: DiffusionPipeline,
    requests: Sequence[QualityRequest],
    steps: int,
    guidance: float,
    on_progress: OnProgress | None = None,
) -> NDArray[np.uint8]:
    """Make the images, uint8 (n, 64, 64, 3)."""
    parts = []
    count = ProgressCounter(on_progress, len(requests), "images")
    for start in range(0, len(requests), BATCH):
        part = requests[start : start + BATCH]
        seeds = list(range(start, start + len(part)))
        parts.append(
            sample(
                pipe,
                [a.prompt for a in part],
                seeds,
                SamplingSettings(steps=steps, guidance_scale=guidance, batch_size=BATCH),
                output="uint8",
            )
        )
        count.add(len(part))
    return np.concatenate(parts)


def oracle_quality(oracle: Oracle) -> dict[str, Any]:
    """Return the oracle's accuracy on 3,000 fresh drawings and its false alarms on images that show nothing."""
    set_ = drawings(3000, 977, Mix(individuals=tuple(words.INDIVIDUALS), hold_out=False))
    things, style, scene = set_.truth()
    reading = oracle.read(set_.pixels)
    each = {t: float(((reading.things[:, i] > 0.5) == (things[:, i] > 0.5)).mean()) for i, t in enumerate(THINGS)}
    present = things[:, : len(words.OBJECTS)] > 0.5
    seen = reading.things[:, : len(words.OBJECTS)] > 0.5
    rng = np.random.default_rng(5)
    noise = rng.normal(127, rng.uniform(30, 120, (500, 1, 1, 1)), (500, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    blurred = torch.stack([blur(p, 12.0) for p in as_pixels(set_.pixels[:500])])
    blank = [Image.new("RGB", (64, 64), tuple(int(v) for v in rng.integers(0, 256, 3))) for _ in range(200)]
    scenes = [
        draw(compose([], random.Random(i), style=s, scene=c))
        for i in range(12)
        for s in words.STYLES
        for c in words.SCENES
    ]
    images = {"noise": noise, "blurred": _uint8(blurred), "blank": blank, "scene only": scenes}
    alarms = {name: Rate.of(~oracle.read(p).empty()).as_json() for name, p in images.items()}  # type: ignore[arg-type]
    return {
        "n": 3000,
        "objects present that are seen": Rate.of(seen[present]).as_json(),
        "objects absent that are seen": Rate.of(seen[~present]).as_json(),
        "objects, all right in a picture": Rate.of((seen == present).all(1)).as_json(),
        "style": Rate.of(reading.style.argmax(1) == style).as_json(),
        "scene": Rate.of(reading.scene.argmax(1) == scene).as_json(),
        "accuracy of each": each,
        "false alarms": alarms,
    }


def _uint8(pixels: Tensor) -> NDArray[np.uint8]:
    return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


@torch.no_grad()
def token_test(pipe: DiffusionPipeline, oracle: Oracle, steps: int, guidance: float) -> dict[str, Any]:
    """Return the share of images with the object for its words' states alone, the trailing ones alone, and mixtures.

    "Words alone" takes the states from the first end of text on from the empty prompt; "trailing alone" replaces the
    object's word by "thing" before it; in "they disagree" the words name one object and the trailing states the next.
    """
    backbone, names = backbone_of(pipe), list(words.OBJECTS)
    prompts = [f"a photo of {words.article(n)}" for n in names]
    own_word, empty = backbone.encode(prompts), backbone.encode([""])
    neutral = backbone.encode(["a photo of a thing"])
    place = torch.arange(own_word.states.shape[1])[None, :, None]
    trailing = place >= own_word.eot[:, None, None]
    other = own_word.states.roll(-1, 0)
    tables = {
        "words and trailing": own_word.states,
        "words alone": torch.where(trailing, empty.states, own_word.states),
        "trailing alone": torch.where(trailing, own_word.states, neutral.states),
        "they disagree": torch.where(trailing, other, own_word.states),
    }
    # The sentence vector, in a model that has one, is the empty prompt's in all arms but its own.
    blank = None if empty.pooled is None else empty.pooled.expand(len(names), -1)
    arms = {arm: own_word.with_states(states, blank) for arm, states in tables.items()}
    if blank is not None:
        arms["sentence vector alone"] = own_word.with_states(empty.states.expand_as(own_word.states))
        arms["words, trailing and sentence vector"] = own_word
    settings = SamplingSettings(steps=steps, guidance_scale=guidance, batch_size=BATCH)
    out: dict[str, Any] = {}
    for arm, states in arms.items():
        rows = [i for i in range(len(names)) for _ in range(TOKEN_TEST)]
        reading = oracle.read(sample(pipe, states.select(rows), [9000 + i for i in range(len(rows))], settings))
        shown_rows = [names[i] for i in rows]
        if arm != "they disagree":
            out[arm] = Rate.of(np.array([reading.sees(n)[i] for i, n in enumerate(shown_rows)])).as_json()
            continue
        turned = [*shown_rows[TOKEN_TEST:], *shown_rows[:TOKEN_TEST]]
        out["they disagree: words"] = Rate.of(
            np.array([reading.sees(n)[i] for i, n in enumerate(shown_rows)])
        ).as_json()
        out["they disagree: trailing"] = Rate.of(np.array([reading.sees(n)[i] for i, n in enumerate(turned)])).as_json()
    return out


@torch.no_grad()
def attention_test(pipe: DiffusionPipeline, n: int = 144) -> dict[str, Any]:
    """Return the overlap of the maps of an object's word with the object's true box, beside other words' maps.

    Drawings of one object in a scene, noised to one timestep; maps of the layers with the most pixels, on the way up in
    a UNet, mean of heads and layers; a map's region is as many of its highest pixels as the box covers, so that a flat
    map gets no larger region. A transformer's tokens are 2 x 2 latents, and its maps are enlarged to those.
    """
    backbone, names = backbone_of(pipe), list(words.OBJECTS)
    rng = random.Random("attention test")
    layers = [
        name for name in cross_attention_layers(backbone) if ".up_blocks.2." in name or name.startswith("transformer.")
    ]
    own_word, other, earlier, later = [], [], [], []
    for i in range(n):
        name, scene = names[i % len(names)], rng.choice(words.SCENES[1:])
        image = compose([name], rng, scene=scene)
        prompt = f"a photo of {words.article(name)} {words.SCENE_PHRASES[scene][0]}"
        states = backbone.encode([prompt])
        word = states.word_positions(0, name)
        rest = [p for p in range(1, int(states.eot[0])) if p not in word]
        latents = pipe.vae.encode(as_pixels([draw(image)])).latent_dist.mean * pipe.vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(i))
        noisy = backbone.schedule.noised(latents, noise, torch.tensor(MAP_TIMESTEP))
        with AttentionCapture(backbone=backbone, layers=layers, tokens=[*word, *rest]) as capture:
            backbone.predict(noisy, torch.tensor(MAP_TIMESTEP), states)
        side = math.isqrt(next(iter(capture.maps.values())).shape[2])
        maps = (
            average_maps(capture.maps, side, side)[0].repeat_interleave(16 // side, 1).repeat_interleave(16 // side, 2)
        )
        box = box_mask(image.things[0].box)
        own_word.append(_iou(maps[: len(word)].mean(0), box))
        overlap = {place: _iou(map_, box) for place, map_ in zip(rest, maps[len(word) :], strict=True)}
        other.append(overlap[rng.choice(rest)])
        earlier += [value for place, value in overlap.items() if place < word[0]]
        later += [value for place, value in overlap.items() if place > word[-1]]
    return {
        "n": n,
        "own": _mean(own_word),
        "other word": _mean(other),
        "words before it": _mean(earlier),
        "words after it": _mean(later),
        "ratio": float(np.mean(own_word) / np.mean(other)),
        "layers": layers,
    }


def _mean(values: Sequence[float]) -> dict[str, float]:
    return {"value": float(np.mean(values)), "standard_error": float(np.std(values, ddof=1) / math.sqrt(len(values)))}


def _iou(attention: Tensor, box: Tensor) -> float:
    chosen = torch.zeros(256, dtype=torch.bool)
    chosen[attention.flatten().topk(int(box.sum())).indices] = True
    region = chosen.view(16, 16)
    return float((region & box).sum() / (region | box).sum())


def contact_sheet(
    requests: Sequence[QualityRequest], pixels: NDArray[np.uint8], good: NDArray[np.bool_]
) -> Image.Image:
    """Return the first images of each name, a row each, beside its group; a red bar is below those that miss.

    Pairs have one image each and share rows.
    """
    rows_of: dict[tuple[str, str], list[int]] = {}
    for i, request in enumerate(requests):
        rows_of.setdefault((request.group, "" if request.group == "pairs" else request.name), []).append(i)
    pairs = rows_of.pop(("pairs", ""), [])
    rows_of |= {
        ("pairs", f"{index // A_ROW + 1}"): pairs[index : index + A_ROW] for index in range(0, len(pairs), A_ROW)
    }
    names = [(group, name) for group, name in rows_of if group in SHOWN]
    height = math.ceil(len(names) / ACROSS)
    sheet = Image.new("RGB", (ACROSS * (LABEL + A_ROW * 66), height * 70), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (group, name) in enumerate(names):
        left, top = index // height * (LABEL + A_ROW * 66), index % height * 70
        pen.text((left + 4, top + 20), f"{group}\n{name}", fill="black", font_size=11)
        for column, i in enumerate(rows_of[group, name][:A_ROW]):
            x = left + LABEL + column * 66
            sheet.paste(Image.fromarray(pixels[i]), (x, top))
            if not good[i]:
                pen.rectangle((x, top + 65, x + 63, top + 68), fill="red")
    return sheet


def loaded(model: str) -> tuple[Any, SamplingDefaults]:
    """Return the pipeline of a model's name or folder, and the sampling defaults of its kind."""
    if (profile := profile_of(model)).folder is not None:
        return load_model(model), profile.sampling
    if Path(model, "transformer").is_dir():
        return tinyworld.load_flux(folder=Path(model)), profile_of("tinyworld-flux").sampling
    return tinyworld.load(folder=Path(model)), profile_of("tinyworld").sampling


def main() -> None:
    """Measure a model folder and write run.json and a contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tinyworld", help="tinyworld, tinyworld-flux or a model folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json and pictures.jpg")
    parser.add_argument("--every", type=count, default=1, help="take each N-th prompt only, for a quick look")
    parser.add_argument("--steps", type=count, help="default: that of the model's profile")
    parser.add_argument("--guidance", type=float, help="likewise")
    options = parser.parse_args()
    with in_one_line("tinyworld_quality"):
        check_places(options.out, "run.json", "pictures.jpg")
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure a model and write its record.

    Raises:
        InputError: There is no such model, or it was not trained.
    """
    began = time.perf_counter()
    pipe, sampling = loaded(options.model)
    options.steps = options.steps or sampling.steps
    options.guidance = sampling.guidance_scale if options.guidance is None else options.guidance
    oracle = Oracle.load(Path(options.model, "oracle")) if Path(options.model, "oracle").is_dir() else load_oracle()
    requests = plan()[:: options.every]
    with progress_bars() as on_progress:
        pixels = generate(pipe, requests, options.steps, options.guidance, on_progress)
    good = hits(requests, oracle.read(pixels))
    stages: dict[str, Callable[[], Any]] = {
        "oracle": lambda: oracle_quality(oracle),
        "tokens": lambda: token_test(pipe, oracle, options.steps, options.guidance),
        "attention": lambda: attention_test(pipe),
    }
    record = {
        "benchmark": "tinyworld-quality",
        "version": VERSION,
        "config": {
            "steps": options.steps,
            "guidance_scale": options.guidance,
            "sampler": type(pipe.scheduler).__name__.removesuffix("Scheduler"),
            "every": options.every,
        },
        "model": backbone_of(pipe).fingerprint(),
        "n": len(requests),
        "groups": by_group(requests, good),
        **{name: stage() for name, stage in stages.items()},
        **provenance(start=began),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "run.json", (json.dumps(record, indent=1) + "\n").encode())
    contact_sheet(requests, pixels, good).save(options.out / "pictures.jpg", quality=90, subsampling=0)
    for name, group in record["groups"].items():
        worst = min(group["each"], key=lambda k: group["each"][k]["value"])
        line = f"{name:16} {group['value']:.3f}  n {group['n']}  worst {worst} {group['each'][worst]['value']:.2f}"
        Console().print(line, highlight=False)
    Console().print(record["tokens"], record["attention"], options.out / "run.json")


if __name__ == "__main__":
    main()
