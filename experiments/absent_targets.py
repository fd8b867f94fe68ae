"""The target of `absent` sampled by itself: `python -m experiments.absent_targets --concept dog`.

The original begins images of a concept; from some step on they follow the exact target, computed by the original. No
student is in it: what still shows the concept here is the best that a training towards that target can reach. Bases are
the prompt without the concept, names that stay, and the empty prompt, with the concept's direction from itself to the
prompt of the image, or from that prompt without the concept ("equal content"); a base's distance is that of its
prediction on those images from the concept's, in units of the blank's.
"""

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import Conditioning, concatenate
from erasure.concept import Concept
from erasure.io.files import make_folder
from erasure.profile import profile_of
from erasure.prompts import blank, fill, templates
from erasure.provenance import provenance
from erasure.sampling import noise, scheduled_prediction, trajectory_latents
from erasure.training.objectives.absent import absent_prediction

from .experiment import write_record

STEPS, GUIDANCE, RAMP = 20, 4.0, 0.3
BEGUN = (4, 8)
"""Steps of the original before the target takes over."""
ODDS = (0.0, 1.0, 3.0, 10.0)
FURTHER, FURTHER_ODDS = ("tree", "house", "car", "umbrella", "hammer"), 3.0
"""Bases beside the blank and a sibling, where they stay, and the only odds that these are tried with."""
EMPTY, EQUAL = "empty prompt", "empty prompt, equal content"
"""The target of what reads no prompt of its image; the second has the direction at equal content."""


@torch.no_grad()
def predictions(backbone: Backbone, latents: Tensor, timestep: Tensor, *prompts: Conditioning) -> Sequence[Tensor]:
    """Return the predictions for several prompts of each image."""
    read = concatenate(list(prompts))
    return scheduled_prediction(backbone, torch.cat([latents] * len(prompts)), timestep, read).chunk(len(prompts))


def followed(
    backbone: Backbone,
    start: Tensor,
    first: int,
    base: Conditioning,
    named: Conditioning,
    odds: float,
    guidance_scale: float,
    against: Conditioning,
) -> Tensor:
    """Return the images that follow the target from a step on, as clean latents; the odds are ramped.

    With a guidance scale above 1 the target is that of guided sampling: the empty prompt's is the other side. The
    concept's direction is that from `against` to `named`.
    """
    timesteps, schedule = backbone.schedule.timesteps(STEPS), backbone.schedule
    empty = backbone.encode([""] * len(start))
    latents = start
    for step in range(first, STEPS):
        timestep = timesteps[step]
        free, start_from, without, with_it = predictions(backbone, latents, timestep, empty, base, against, named)
        here = torch.full((len(latents),), odds * min(1.0, float(timestep) / schedule.total / RAMP))
        free = absent_prediction(free, with_it, here)
        prediction = absent_prediction(start_from, with_it, here, without)
        prediction = free + guidance_scale * (prediction - free)
        following = timesteps[step + 1] if step + 1 < STEPS else torch.zeros_like(timestep)
        latents = schedule.step(prediction, latents, timestep, following)
    return latents


def distances_of(
    backbone: Backbone, latents: Tensor, bases: Mapping[str, Conditioning], named: Conditioning
) -> dict[str, float]:
    """Return the distance of each base's prediction from the concept's after the most steps, in those of the blank."""
    timestep = backbone.schedule.timesteps(STEPS)[BEGUN[-1]]
    distances = {}
    for name, base in bases.items():
        blank, other, concept = predictions(backbone, latents, timestep, bases["blank"], base, named)
        apart, unit = ((each - concept).flatten(1).norm(dim=1) for each in (other, blank))
        distances[name] = float((apart / unit).mean())
    return distances


def decoded(pipe: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Return latents as images."""
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def cases_of(sibling: str, further: Sequence[str]) -> list[tuple[str, float, float]]:
    """Return bases with odds and scales of guidance."""
    cases = [(base, odds, 1.0) for base, odds in itertools.product(("blank", sibling), ODDS)]
    cases += [(base, FURTHER_ODDS, 1.0) for base in (*further, EMPTY, EQUAL)]
    return [*cases, *((base, FURTHER_ODDS, GUIDANCE) for base in ("blank", sibling, *further))]


def main() -> None:
    """Read the command line, sample every target, and write run.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--images", type=int, default=16, help="images of each target")
    parser.add_argument("--bases", nargs="+", metavar="BASE", help="some of the bases; default: all")
    parser.add_argument("--out", type=Path, default=Path("results/absent-targets"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    pipe, judge = tinyworld.load(), tinyworld.load_oracle()
    backbone, profile = backbone_of(pipe), profile_of(pipe)
    [request] = cast("list[dict[str, Any]]", profile.completed([{"target": options.concept}]))
    concept = Concept.from_json(request)
    sentences = [templates(concept.kind)[i % len(templates(concept.kind))] for i in range(options.images)]
    named = backbone.encode([fill(sentence, concept.target) for sentence in sentences])
    sibling = next(name for name in profile.siblings(concept.target) if name in concept.preserve)
    further = [name for name in FURTHER if name in concept.preserve and name != sibling]
    empty = backbone.encode([""] * options.images)
    bare = backbone.encode([blank(concept.kind, sentence) for sentence in sentences])
    bases = {
        EMPTY: empty,
        EQUAL: empty,
        "blank": backbone.encode([blank(concept.kind, sentence) or "a photo" for sentence in sentences]),
    }
    bases |= {
        name: backbone.encode([fill(sentence, name) for sentence in sentences])
        for name in dict.fromkeys([sibling, *further])
    }
    generators = [torch.Generator().manual_seed(900 + i) for i in range(options.images)]
    begun = trajectory_latents(
        backbone,
        noise(generators, backbone.latent_shape()),
        named,
        backbone.unconditional(),
        steps=STEPS,
        guidance_scale=GUIDANCE,
        stops=BEGUN,
    )
    distances = distances_of(backbone, begun[BEGUN[-1]], bases, named)
    rows = []
    cases = [case for case in cases_of(sibling, further) if case[0] in (options.bases or bases)]
    for (base, odds, scale), first in itertools.product(cases, BEGUN):
        against = bare if base == EQUAL else bases[base]
        latents = followed(backbone, begun[first], first, bases[base], named, odds, scale, against)
        images = decoded(pipe, latents)
        seen = float(sum(map(bool, judge.shows(images, concept.target))) / len(images))
        rows.append({"base": base, "odds": odds, "guidance_scale": scale, "begun": first, "seen": seen})
        print(rows[-1], flush=True)
    record = {"concept": concept.target, "images": options.images, "steps": STEPS, "rows": rows, "distances": distances}
    make_folder(options.out / concept.target)
    print(write_record({**record, "provenance": provenance(start=start)}, options.out / concept.target))


if __name__ == "__main__":
    main()
