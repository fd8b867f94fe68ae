"""Two objects in one prompt on the tiny world: are both drawn, and what is left when one is removed where it stands?

    python -m experiments.several_concepts --out results/a-star-tinyworld/pairs
    python -m experiments.several_concepts --sweep --out results/a-star-tinyworld/sweep
    python -m experiments.several_concepts --localised --out results/a-star-tinyworld/localised

Every pair of objects is asked for in both orders, pairs that never shared a picture in training included. What is made
on the way lies in `--work`; killed at any moment, the same command goes on from there.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from rich.console import Console

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.errors import ErasureError
from erasure.eval.images.attention_maps import watched
from erasure.eval.images.ledger_images import Sampler, as_png, side_by_side
from erasure.eval.metrics.caption_match import captions, text_match
from erasure.eval.metrics.fid import fid
from erasure.eval.metrics.oracle_distance import OracleDistance
from erasure.eval.stats.paired import mcnemar
from erasure.eval.stats.scores import Rate, Score
from erasure.guidance import Applicable
from erasure.guidance.a_star import AStar
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.localised import LocalisedRemoval
from erasure.io.files import make_folder, write_whole
from erasure.profile import profile_of
from erasure.progress import OnProgress, Progress, progress_bars
from erasure.provenance import provenance
from erasure.sampling import sample
from erasure.tinyworld import vocabulary
from erasure.tinyworld.oracle import Oracle
from erasure.tinyworld.world import compose, draw
from erasure.training.replay_memory import stored

from .experiment import plain_options, write_record

SAMPLING = profile_of("tinyworld").sampling
VERSION = 1
SAMPLER = Sampler(steps=SAMPLING.steps, guidance_scale=SAMPLING.guidance_scale, batch_size=24)
ALPHAS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
PLAIN = "plain"
_ALL = tuple(vocabulary.OBJECTS)
_WATCHED = 24  # pictures whose maps are followed over the steps
_A_FILE = 8  # pictures that one file of removals holds

Pixels = UInt8[np.ndarray, "n 64 64 3"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One picture to make.

    Attributes:
        prompt: What is asked for.
        pair: The two objects that it names, in order.
        seed: Of the noise.
    """

    prompt: str
    pair: tuple[str, str]
    seed: int

    @property
    def held_out(self) -> bool:
        """Whether the two never shared a picture in training."""
        return frozenset(self.pair) in vocabulary.HELD_OUT_PAIRS


def pair_asks(seeds: int, *, first: int = 0, prompts: int | None = None) -> list[Ask]:
    """Return every ordered pair of objects with some seeds, distinct for all; or some pairs, spread evenly."""
    pairs = list(itertools.permutations(_ALL, 2))
    if prompts is not None:
        random.Random(f"pairs {first}").shuffle(pairs)
        pairs = pairs[:prompts]
    return [
        Ask(prompt=f"{vocabulary.article(one)} and {vocabulary.article(other)}", pair=(one, other), seed=first + at)
        for at, ((one, other), _) in enumerate(itertools.product(pairs, range(seeds)))
    ]


def guidances(alpha: float, alpha_excite: float) -> dict[str, Applicable | None]:
    """Return the arms by name; Attend-and-Excite's steps are at the same shares of the schedule as in its paper."""
    shares = (0.0, 0.2, 0.4)
    return {
        PLAIN: None,
        "Attend-and-Excite": AttendAndExcite(
            concepts=_ALL, alpha=alpha_excite, refine_at=tuple(round(share * SAMPLER.steps) for share in shares)
        ),
        "segregation only": AStar(concepts=_ALL, alpha=alpha, retention_scale=0.0),
        "retention only": AStar(concepts=_ALL, alpha=alpha, segregation_scale=0.0),
        "A-STAR": AStar(concepts=_ALL, alpha=alpha),
    }


def made(
    pipe: Any, asks: Sequence[Ask], guidance: Applicable | None, work: Path, what: str, on_progress: OnProgress
) -> Pixels:
    """Return the pictures of an arm, kept a batch at a time."""
    parts = []
    for at in range(0, len(asks), SAMPLER.batch_size):
        part = asks[at : at + SAMPLER.batch_size]

        def make(part: Sequence[Ask] = part) -> dict[str, torch.Tensor]:
            prompts, seeds = [ask.prompt for ask in part], [ask.seed for ask in part]
            if guidance is None:
                return {"pixels": torch.from_numpy(sample(pipe, prompts, seeds, output="uint8", **asdict(SAMPLER)))}
            with guidance.applied_to(pipe):
                return {"pixels": torch.from_numpy(sample(pipe, prompts, seeds, output="uint8", **asdict(SAMPLER)))}

        key = [*_key(pipe, guidance), [asdict(ask) for ask in part]]
        parts.append(stored(work / "pictures", key, make)["pixels"].numpy())
        on_progress(Progress(at + len(part), len(asks), what))
    return np.concatenate(parts)


def _key(pipe: Any, guidance: Applicable | None) -> list[Any]:
    settings = {} if guidance is None else {item.name: getattr(guidance, item.name) for item in _plain_fields(guidance)}
    return [VERSION, backbone_of(pipe).fingerprint(), type(guidance).__name__, settings, asdict(SAMPLER)]


def _plain_fields(guidance: Applicable) -> list[Any]:
    return [item for item in fields(guidance) if not item.name.startswith("on_")]  # type: ignore[arg-type]


def drawings(asks: Sequence[Ask]) -> Pixels:
    """Return what the world itself draws for the asks: both objects, on no scene."""
    rng = random.Random("drawings of pairs")
    return np.stack([np.asarray(draw(compose(list(ask.pair), rng)).convert("RGB")) for ask in asks])


class Judged:
    """What the judges say of pictures of pairs."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks
        self.oracle = Oracle.load(tinyworld.MODEL / "oracle")
        self.judge = tinyworld.load_clip()
        self.prompts = self.judge.text_features([ask.prompt for ask in asks])
        halves = [vocabulary.article(name) for ask in asks for name in ask.pair]
        self.halves = self.judge.text_features([f"a photo of {half}" for half in halves]).view(len(asks), 2, -1)
        self.reference = self.judge.image_features(list(map(Image.fromarray, drawings(asks))))

    def of(self, pixels: Pixels) -> tuple[dict[str, Any], Bool[np.ndarray, " n"]]:
        """Return the scores of an arm, and which pictures show both objects."""
        reading = self.oracle.read(pixels)
        seen = np.array([[reading.sees(name)[at] for name in ask.pair] for at, ask in enumerate(self.asks)])
        both = np.asarray(seen.all(1))
        held = np.array([ask.held_out for ask in self.asks])
        features = self.judge.image_features(list(map(Image.fromarray, pixels)))
        written = self.judge.text_features(captions(reading))
        halves = 100 * torch.einsum("nd,nkd->nk", features, self.halves)
        means = {
            "clip_score": ((100 * (features * self.prompts).sum(1)), "100 x cosine"),
            "clip_minimum": (halves.amin(1), "100 x cosine"),
            "caption_match": (text_match(written, self.prompts), "100 x cosine of texts"),
        }
        scores = {
            "both": Rate.of(both).as_json(),
            "both_never_seen_together": Rate.of(both[np.flatnonzero(held)]).as_json() if held.any() else None,
            "neither": Rate.of(np.asarray(~seen.any(1))).as_json(),
            "frechet_distance": {"value": fid(features, self.reference), "n": len(pixels)},
            **{
                name: Score.mean(values.tolist(), unit=unit, higher_is_better=True).as_json()
                for name, (values, unit) in means.items()
            },
        }
        return scores, both


def pairs_experiment(pipe: Any, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return every arm's scores over all pairs, the paired tests between them, and maps over the steps."""
    asks = pair_asks(options.seeds, prompts=options.prompts)
    judged = Judged(asks)
    arms: dict[str, Any] = {}
    both: dict[str, Bool[np.ndarray, " n"]] = {}
    frames: dict[str, Pixels] = {}
    for name, guidance in guidances(options.alpha, options.alpha_excite).items():
        began = time.perf_counter()
        frames[name] = made(pipe, asks, guidance, options.work, name, on_progress)
        arms[name], both[name] = judged.of(frames[name])
        arms[name]["maps"] = followed(pipe, asks[:: max(1, len(asks) // _WATCHED)][:_WATCHED], guidance, on_progress)
        arms[name]["seconds"] = round(time.perf_counter() - began, 1)
    against = {
        f"{one} against {other}": asdict(mcnemar(both[other], both[one]))
        for one, other in itertools.permutations(arms, 2)
        if one != PLAIN
    }
    shown = [at * len(asks) // 8 for at in range(8)]
    sheet = side_by_side(
        list(arms),
        [f"{asks[at].prompt}, seed {asks[at].seed}" for at in shown],
        [[Image.fromarray(frames[name][at]) for name in arms] for at in shown],
        cell=128,
    )
    write_whole(options.out / "pictures.png", as_png(sheet))
    return {"n": len(asks), "arms": arms, "mcnemar": against}


def followed(pipe: Any, asks: Sequence[Ask], guidance: Applicable | None, on_progress: OnProgress) -> dict[str, Any]:
    """Return the overlap of the two objects' maps and the share of its region that each keeps, by step."""
    overlaps, kept = [], []
    for done, ask in enumerate(asks, start=1):
        seen = watched(pipe, ask.prompt, ask.pair, ask.seed, SAMPLER, guidance)
        steps = sorted(seen.maps)
        overlaps.append([seen.overlap(step) for step in steps])
        kept.append([_kept(seen.maps[one], seen.maps[other]) for one, other in itertools.pairwise(steps)])
        on_progress(Progress(done, len(asks), "maps"))
    return {"n": len(asks), "overlap": np.mean(overlaps, 0).tolist(), "kept": np.mean(kept, 0).tolist()}


def _kept(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return the share of the attention after a step that is in the region of before it, mean over concepts."""
    regions = before >= 0.5 * before.amax((1, 2), keepdim=True)
    return float(((after * regions).sum((1, 2)) / after.sum((1, 2)).clamp(min=1e-12)).mean())


def sweep(pipe: Any, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return the scores of A-STAR and Attend-and-Excite at each size of update, on other seeds, 20 prompts x 4."""
    asks = pair_asks(4, first=1_000_000, prompts=20)
    judged = Judged(asks)
    rows = {PLAIN: judged.of(made(pipe, asks, None, options.work, PLAIN, on_progress))[0]}
    for alpha in ALPHAS:
        arms = guidances(alpha, alpha)
        for name in ("Attend-and-Excite", "A-STAR"):
            what = f"{name}, alpha {alpha:g}"
            rows[what] = judged.of(made(pipe, asks, arms[name], options.work, what, on_progress))[0]
    return {"n": len(asks), "arms": rows}


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


def localised(pipe: Any, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Return what each way of removing the first of two objects does to it, to the other and to the rest."""
    rng = random.Random("localised removal")
    pairs = rng.sample(list(itertools.permutations(_ALL, 2)), options.removals)
    asks = []
    for at, (pair, turn) in enumerate(itertools.product(pairs, range(options.seeds))):
        scene = vocabulary.SCENE_PHRASES[vocabulary.SCENES[1:][at % (len(vocabulary.SCENES) - 1)]][0]
        words = " and ".join(map(vocabulary.article, pair if turn % 2 else pair[::-1]))
        asks.append(Ask(prompt=f"{words} {scene}", pair=pair, seed=2_000_000 + at))
    before = made(pipe, asks, None, options.work, PLAIN, on_progress)
    oracle = Oracle.load(tinyworld.MODEL / "oracle")
    reading = oracle.read(before)
    there = np.array([all(reading.sees(name)[at] for name in ask.pair) for at, ask in enumerate(asks)])
    masks = torch.empty(0)
    arms: dict[str, Any] = {}
    shown: dict[str, Pixels] = {PLAIN: before}
    for name, settings in removals(1.0).items():
        after, acted = _removed(pipe, asks, settings, options.work, name, on_progress)
        masks = acted if name == "localised" else masks
        shown[name] = after
    shown["a negative prompt"] = _negative(pipe, asks, options.work, on_progress)
    # Every way is judged on the region of the first one, so that distances compare.
    inside = masks.numpy().repeat(4, 1).repeat(4, 2)
    distance = OracleDistance(oracle=oracle)
    for name, after in shown.items():
        arms[name] = _left(asks, there, inside, before, after, oracle, distance)
    rows = np.flatnonzero(there)[:8]
    sheet = side_by_side(
        list(shown),
        [f"{asks[at].prompt}, seed {asks[at].seed}, without {asks[at].pair[0]}" for at in rows],
        [[Image.fromarray(pixels[at]) for pixels in shown.values()] for at in rows],
        cell=128,
    )
    write_whole(options.out / "pictures.png", as_png(sheet))
    return {"n": len(asks), "n_both_there": int(there.sum()), "region": float(inside.mean()), "arms": arms}


def _removed(
    pipe: Any, asks: Sequence[Ask], settings: Mapping[str, Any], work: Path, what: str, on_progress: OnProgress
) -> tuple[Pixels, torch.Tensor]:
    """Return the pictures without the first object of each pair, and where they were acted on."""
    pixels, acted = [], []
    for at in range(0, len(asks), _A_FILE):
        part = asks[at : at + _A_FILE]

        def make(part: Sequence[Ask] = part) -> dict[str, torch.Tensor]:
            found, regions = [], []
            for ask in part:
                last: list[torch.Tensor] = []
                removal = LocalisedRemoval(
                    concepts=(ask.pair[0],),
                    preserve=(ask.pair[1],),
                    on_masks=lambda _, mask, last=last: last.append(mask),
                    **settings,
                )
                with removal.applied_to(pipe):
                    found.append(sample(pipe, [ask.prompt], [ask.seed], output="uint8", **asdict(SAMPLER)))
                regions.append(last[-1])
            return {"pixels": torch.from_numpy(np.concatenate(found)), "regions": torch.cat(regions)}

        key = [VERSION, backbone_of(pipe).fingerprint(), "localised", dict(settings), asdict(SAMPLER)]
        kept = stored(work / "pictures", [*key, [asdict(ask) for ask in part]], make)
        pixels.append(kept["pixels"].numpy())
        acted.append(kept["regions"])
        on_progress(Progress(at + len(part), len(asks), what))
    return np.concatenate(pixels), torch.cat(acted)


def _negative(pipe: Any, asks: Sequence[Ask], work: Path, on_progress: OnProgress) -> Pixels:
    """Return the pictures with the first object as the negative prompt."""
    parts = []
    for done, ask in enumerate(asks, start=1):

        def make(ask: Ask = ask) -> dict[str, torch.Tensor]:
            settings = {**asdict(SAMPLER), "negative_prompt": ask.pair[0]}
            return {"pixels": torch.from_numpy(sample(pipe, [ask.prompt], [ask.seed], output="uint8", **settings))}

        key = [VERSION, backbone_of(pipe).fingerprint(), "negative", asdict(SAMPLER), asdict(ask)]
        parts.append(stored(work / "pictures", key, make)["pixels"].numpy())
        on_progress(Progress(done, len(asks), "a negative prompt"))
    return np.concatenate(parts)


def _left(
    asks: Sequence[Ask],
    there: Bool[np.ndarray, " n"],
    inside: Bool[np.ndarray, "n 64 64"],
    before: Pixels,
    after: Pixels,
    oracle: Oracle,
    distance: OracleDistance,
) -> dict[str, Any]:
    """Return whether the first object is gone and the second kept, of those drawn; and distances by region."""
    reading = oracle.read(after)
    seen = np.array([[reading.sees(name)[at] for name in ask.pair] for at, ask in enumerate(asks)])
    pixels = np.abs(after.astype(np.float32) - before).mean(-1)
    features = distance.maps(before, after).numpy()
    return {
        "gone": Rate.of(~seen[there, 0]).as_json(),
        "other_kept": Rate.of(seen[there, 1]).as_json(),
        **{
            f"{what}_{where}": float(np.mean([each[at][mask[at]].mean() for at in range(len(asks)) if mask[at].any()]))
            for what, each in (("pixels", pixels), ("oracle_distance", features))
            for where, mask in (("outside", ~inside), ("inside", inside))
        },
    }


def main() -> None:
    """Run one of the three experiments and write run.json and a sheet of pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sweep", action="store_true", help="try sizes of the update, on other seeds")
    parser.add_argument("--localised", action="store_true", help="remove one of two objects where it stands")
    parser.add_argument("--alpha", type=float, default=20.0, help="of A-STAR and its single losses")
    parser.add_argument("--alpha-excite", type=float, default=20.0, help="of Attend-and-Excite")
    parser.add_argument("--seeds", type=int, default=4, help="pictures a prompt")
    parser.add_argument("--prompts", type=int, help="take so many pairs instead of all")
    parser.add_argument("--removals", type=int, default=48, help="pairs of --localised")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/several-concepts"))
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json and pictures.png")
    options = parser.parse_args()
    experiment = localised if options.localised else sweep if options.sweep else pairs_experiment
    began = time.perf_counter()
    try:
        make_folder(options.out)
        with progress_bars() as on_progress:
            pipe = tinyworld.load()
            results = experiment(pipe, options, on_progress)
    except ErasureError as error:
        sys.exit(f"several_concepts: {error}")
    record = {
        "benchmark": f"several-concepts-{experiment.__name__}",
        "version": VERSION,
        "config": plain_options(options),
        "sampler": asdict(SAMPLER),
        "model": backbone_of(pipe).fingerprint(),
        **results,
        **provenance(start=began),
    }
    path = write_record(record, options.out)
    for name, arm in results["arms"].items():
        first = next(iter(arm.values()))
        Console().print(f"{name:32} {first['value']:.3f}  n {first['n']}", highlight=False)
    Console().print(str(path), markup=False)


if __name__ == "__main__":
    main()
