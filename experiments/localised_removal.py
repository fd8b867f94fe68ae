"""Localised removal of one of two objects: the object, the other object, and the rest of the image."""

import argparse
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool
from PIL import Image

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.eval.images.png import as_png
from erasure.eval.images.sheets import side_by_side
from erasure.eval.metrics.oracle_distance import OracleDistance
from erasure.eval.stats.scores import Rate
from erasure.guidance.localised import LocalisedRemoval
from erasure.io.files import make_folder, write_whole
from erasure.io.tensor_cache import stored
from erasure.progress import OnProgress, Progress
from erasure.sampling import sample
from erasure.tinyworld import vocabulary
from erasure.tinyworld.oracle import Oracle

from .pairs import ALL, PLAIN, SAMPLER, VERSION, PairRequest, Pixels, sampled

_FILE_IMAGES = 8  # images that one file of removals holds


def localised(pipe: DiffusionPipeline, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return the effect of each way to remove the first of two objects on it, on the other and on the rest."""
    rng = random.Random("localised removal")
    pairs = rng.sample(list(itertools.permutations(ALL, 2)), options.removals)
    requests = []
    for i, (pair, turn) in enumerate(itertools.product(pairs, range(options.seeds))):
        scene = vocabulary.SCENE_PHRASES[vocabulary.SCENES[1:][i % (len(vocabulary.SCENES) - 1)]][0]
        words = " and ".join(map(vocabulary.article, pair if turn % 2 else pair[::-1]))
        requests.append(PairRequest(prompt=f"{words} {scene}", pair=pair, seed=2_000_000 + i))
    before = sampled(pipe, requests, None, options.work, PLAIN, on_progress)
    oracle = Oracle.load(tinyworld.MODEL / "oracle")
    reading = oracle.read(before)
    there = np.array([all(reading.sees(name)[i] for name in request.pair) for i, request in enumerate(requests)])
    masks = torch.empty(0)
    arms: dict[str, Any] = {}
    shown: dict[str, Pixels] = {PLAIN: before}
    for name, settings in removals(1.0).items():
        after, acted = _removed(pipe, requests, settings, options.work, name, on_progress)
        masks = acted if name == "localised" else masks
        shown[name] = after
    shown["a negative prompt"] = _negative(pipe, requests, options.work, on_progress)
    # Every way is judged on the region of the first one, so that distances compare.
    inside = masks.numpy().repeat(4, 1).repeat(4, 2)
    distance = OracleDistance(oracle=oracle)
    for name, after in shown.items():
        arms[name] = _left(requests, there, inside, before, after, oracle, distance)
    rows = np.flatnonzero(there)[:8]
    sheet = side_by_side(
        list(shown),
        [f"{requests[i].prompt}, seed {requests[i].seed}, without {requests[i].pair[0]}" for i in rows],
        [[Image.fromarray(pixels[i]) for pixels in shown.values()] for i in rows],
        cell=128,
    )
    make_folder(options.out)
    write_whole(options.out / "pictures.png", as_png(sheet))
    return {"n": len(requests), "n_both_there": int(there.sum()), "region": float(inside.mean()), "arms": arms}


def removals(scale: float) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each way of removing one of two objects where it stands."""
    return {
        "localised": {},
        "localised, rest left free": {"outside": "free"},
        "the force alone": {"anchor": None, "scale": scale, "outside": "free"},
        "the force alone, twice": {"anchor": None, "scale": 2 * scale, "outside": "free"},
        "the force, rest held": {"anchor": None, "scale": 2 * scale},
        "localised, parted first": {"leak_alpha": 20.0},
    }


def _removed(
    pipe: DiffusionPipeline,
    requests: Sequence[PairRequest],
    settings: Mapping[str, Any],
    work: Path,
    what: str,
    on_progress: OnProgress,
) -> tuple[Pixels, torch.Tensor]:
    """Return the images without the first object of each pair, and where they were acted on."""
    pixels, acted = [], []
    for i in range(0, len(requests), _FILE_IMAGES):
        part = requests[i : i + _FILE_IMAGES]

        def make(part: Sequence[PairRequest] = part) -> dict[str, torch.Tensor]:
            arrays, regions = [], []
            for request in part:
                last: list[torch.Tensor] = []
                removal = LocalisedRemoval(
                    concepts=(request.pair[0],),
                    preserve=(request.pair[1],),
                    on_masks=lambda _, mask, last=last: last.append(mask),
                    **settings,
                )
                with removal.applied_to(pipe):
                    arrays.append(sample(pipe, [request.prompt], [request.seed], SAMPLER, output="uint8"))
                regions.append(last[-1])
            return {"pixels": torch.from_numpy(np.concatenate(arrays)), "regions": torch.cat(regions)}

        key = [VERSION, backbone_of(pipe).fingerprint(), "localised", dict(settings), SAMPLER.as_settings()]
        kept = stored(work / "pictures", [*key, [asdict(request) for request in part]], make)
        pixels.append(kept["pixels"].numpy())
        acted.append(kept["regions"])
        on_progress(Progress(i + len(part), len(requests), what))
    return np.concatenate(pixels), torch.cat(acted)


def _negative(pipe: DiffusionPipeline, requests: Sequence[PairRequest], work: Path, on_progress: OnProgress) -> Pixels:
    """Return the images with the first object as the negative prompt."""
    parts = []
    for done, request in enumerate(requests, start=1):

        def make(request: PairRequest = request) -> dict[str, torch.Tensor]:
            settings = replace(SAMPLER, negative_prompt=request.pair[0])
            return {
                "pixels": torch.from_numpy(sample(pipe, [request.prompt], [request.seed], settings, output="uint8"))
            }

        key = [VERSION, backbone_of(pipe).fingerprint(), "negative", SAMPLER.as_settings(), asdict(request)]
        parts.append(stored(work / "pictures", key, make)["pixels"].numpy())
        on_progress(Progress(done, len(requests), "a negative prompt"))
    return np.concatenate(parts)


def _left(
    requests: Sequence[PairRequest],
    there: Bool[np.ndarray, " n"],
    inside: Bool[np.ndarray, "n 64 64"],
    before: Pixels,
    after: Pixels,
    oracle: Oracle,
    distance: OracleDistance,
) -> dict[str, Any]:
    """Return the removal rate of the first object, the retention of the second, and distances by region."""
    reading = oracle.read(after)
    seen = np.array([[reading.sees(name)[i] for name in request.pair] for i, request in enumerate(requests)])
    pixels = np.abs(after.astype(np.float32) - before).mean(-1)
    features = distance.maps(before, after).numpy()
    return {
        "gone": Rate.of(~seen[there, 0]).as_json(),
        "other_kept": Rate.of(seen[there, 1]).as_json(),
        **{
            f"{what}_{where}": float(np.mean([each[i][mask[i]].mean() for i in range(len(requests)) if mask[i].any()]))
            for what, each in (("pixels", pixels), ("oracle_distance", features))
            for where, mask in (("outside", ~inside), ("inside", inside))
        },
    }
