"""The target of `absent` sampled by itself: `python -m experiments.absent_targets --concept dog`.

The original begins images of a concept; from some step on they follow the exact target, computed by the original. No
student is in it: what still shows the concept here is the best that a training towards that target can reach.
"""

import argparse
import itertools
import time
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


@torch.no_grad()
def followed(
    backbone: Backbone, start: Tensor, first: int, base: Conditioning, named: Conditioning, odds: float
) -> Tensor:
    """Return the images that follow the target from a step on, as clean latents; the odds are ramped."""
    timesteps, schedule = backbone.schedule.timesteps(STEPS), backbone.schedule
    latents = start
    for step in range(first, STEPS):
        timestep = timesteps[step]
        read = concatenate([base, named])
        without, with_it = scheduled_prediction(backbone, torch.cat([latents, latents]), timestep, read).chunk(2)
        here = odds * min(1.0, float(timestep) / schedule.total / RAMP)
        prediction = absent_prediction(without, with_it, torch.full((len(latents),), here))
        following = timesteps[step + 1] if step + 1 < STEPS else torch.zeros_like(timestep)
        latents = schedule.step(prediction, latents, timestep, following)
    return latents


def decoded(pipe: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Return latents as images."""
    with torch.no_grad():
        pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pixels = ((pixels.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def main() -> None:
    """Read the command line, sample every target, and write run.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", default="dog")
    parser.add_argument("--images", type=int, default=10, help="images of each target")
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
    bases = {
        "blank": backbone.encode([blank(concept.kind, sentence) or "a photo" for sentence in sentences]),
        sibling: backbone.encode([fill(sentence, sibling) for sentence in sentences]),
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
    rows = []
    for (name, base), odds, first in itertools.product(bases.items(), ODDS, BEGUN):
        images = decoded(pipe, followed(backbone, begun[first], first, base, named, odds))
        seen = float(sum(map(bool, judge.shows(images, concept.target))) / len(images))
        rows.append({"base": name, "odds": odds, "begun": first, "seen": seen})
        print(rows[-1], flush=True)
    record = {"concept": concept.target, "images": options.images, "steps": STEPS, "rows": rows}
    make_folder(options.out / concept.target)
    print(write_record({**record, "provenance": provenance(start=start)}, options.out / concept.target))


if __name__ == "__main__":
    main()
