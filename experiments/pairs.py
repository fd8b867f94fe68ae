"""Images of two objects in one prompt: requests, sampling with a guidance, and their judgement."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, UInt8
from PIL import Image

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.eval.metrics.caption_match import captions, text_match
from erasure.eval.metrics.fid import fid
from erasure.eval.stats.scores import Rate, Score
from erasure.guidance import Applicable
from erasure.guidance.a_star import AStar
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.io.tensor_cache import stored
from erasure.profile import profile_of
from erasure.progress import OnProgress, Progress
from erasure.sampling import SamplingSettings, sample
from erasure.tinyworld import vocabulary
from erasure.tinyworld.oracle import Oracle
from erasure.tinyworld.world import compose, draw

VERSION = 1
SAMPLING = profile_of("tinyworld").sampling
SAMPLER = SamplingSettings(steps=SAMPLING.steps, guidance_scale=SAMPLING.guidance_scale, batch_size=24)
PLAIN = "plain"
ALL = tuple(vocabulary.OBJECTS)

Pixels = UInt8[np.ndarray, "n 64 64 3"]


@dataclass(frozen=True, kw_only=True)
class PairRequest:
    """One image to make.

    Attributes:
        prompt: Prompt.
        pair: The two objects that it names, in order.
        seed: Seed of the noise, >= 0.
    """

    prompt: str
    pair: tuple[str, str]
    seed: int

    @property
    def held_out(self) -> bool:
        """Whether the two never shared an image in training."""
        return frozenset(self.pair) in vocabulary.HELD_OUT_PAIRS


def pair_requests(seeds: int, *, first: int = 0, prompts: int | None = None) -> list[PairRequest]:
    """Return every ordered pair of objects with some seeds, distinct for all; or some pairs, spread evenly."""
    pairs = list(itertools.permutations(ALL, 2))
    if prompts is not None:
        random.Random(f"pairs {first}").shuffle(pairs)
        pairs = pairs[:prompts]
    return [
        PairRequest(
            prompt=f"{vocabulary.article(one)} and {vocabulary.article(other)}", pair=(one, other), seed=first + i
        )
        for i, ((one, other), _) in enumerate(itertools.product(pairs, range(seeds)))
    ]


def guidances(alpha: float, alpha_excite: float) -> dict[str, Applicable | None]:
    """Return the arms by name; Attend-and-Excite's steps are at the same shares of the schedule as in its paper."""
    shares = (0.0, 0.2, 0.4)
    return {
        PLAIN: None,
        "Attend-and-Excite": AttendAndExcite(
            concepts=ALL, alpha=alpha_excite, refine_at=tuple(round(share * SAMPLER.steps) for share in shares)
        ),
        "segregation only": AStar(concepts=ALL, alpha=alpha, retention_scale=0.0),
        "retention only": AStar(concepts=ALL, alpha=alpha, segregation_scale=0.0),
        "A-STAR": AStar(concepts=ALL, alpha=alpha),
    }


def sampled(
    pipe: DiffusionPipeline,
    requests: Sequence[PairRequest],
    guidance: Applicable | None,
    work: Path,
    what: str,
    on_progress: OnProgress,
) -> Pixels:
    """Return the images of an arm, kept a batch at a time."""
    parts = []
    for i in range(0, len(requests), SAMPLER.batch_size):
        part = requests[i : i + SAMPLER.batch_size]

        def make(part: Sequence[PairRequest] = part) -> dict[str, torch.Tensor]:
            prompts, seeds = [request.prompt for request in part], [request.seed for request in part]
            if guidance is None:
                return {"pixels": torch.from_numpy(sample(pipe, prompts, seeds, SAMPLER, output="uint8"))}
            with guidance.applied_to(pipe):
                return {"pixels": torch.from_numpy(sample(pipe, prompts, seeds, SAMPLER, output="uint8"))}

        key = [*_key(pipe, guidance), [asdict(request) for request in part]]
        parts.append(stored(work / "pictures", key, make)["pixels"].numpy())
        on_progress(Progress(i + len(part), len(requests), what))
    return np.concatenate(parts)


def _key(pipe: DiffusionPipeline, guidance: Applicable | None) -> list[Any]:
    settings = {} if guidance is None else {item.name: getattr(guidance, item.name) for item in _plain_fields(guidance)}
    return [VERSION, backbone_of(pipe).fingerprint(), type(guidance).__name__, settings, SAMPLER.as_settings()]


def _plain_fields(guidance: Applicable) -> list[Any]:
    return [item for item in fields(guidance) if not item.name.startswith("on_")]  # type: ignore[arg-type]


def drawings(requests: Sequence[PairRequest]) -> Pixels:
    """Return the world's own drawings for the requests: both objects, on no scene."""
    rng = random.Random("drawings of pairs")
    return np.stack([np.asarray(draw(compose(list(request.pair), rng)).convert("RGB")) for request in requests])


class PairJudge:
    """Scores of images of pairs by the oracle and the world's CLIP."""

    def __init__(self, requests: Sequence[PairRequest]) -> None:
        self.requests = requests
        self.oracle = Oracle.load(tinyworld.MODEL / "oracle")
        self.judge = tinyworld.load_clip()
        self.prompts = self.judge.text_features([request.prompt for request in requests])
        halves = [vocabulary.article(name) for request in requests for name in request.pair]
        self.halves = self.judge.text_features([f"a photo of {half}" for half in halves]).view(len(requests), 2, -1)
        self.reference = self.judge.image_features(list(map(Image.fromarray, drawings(requests))))

    def of(self, pixels: Pixels) -> tuple[dict[str, Any], Bool[np.ndarray, " n"]]:
        """Return the scores of an arm, and which images show both objects."""
        reading = self.oracle.read(pixels)
        seen = np.array([[reading.sees(name)[i] for name in request.pair] for i, request in enumerate(self.requests)])
        both = np.asarray(seen.all(1))
        held = np.array([request.held_out for request in self.requests])
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
