"""Learning and removing individuals of the tiny world: what ClassDiffusion's semantic preservation is worth there.

    python -m experiments.instance_experiments learn --out results/class-diffusion-tinyworld/learn
    python -m experiments.instance_experiments remove --out results/class-diffusion-tinyworld/remove

`learn` teaches Rusty, a dog that the generator was never shown, from five drawings, with several weights of the loss,
and forgets it again. `remove` erases Biscuit, a dog that it knows, by each method without and with the loss. Killed at
any moment, the same command goes on from there.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.edits import WeightEdit
from erasure.erasers import make_eraser
from erasure.eval.images.png import as_png
from erasure.eval.images.sheets import side_by_side
from erasure.eval.metrics.identity import Identity
from erasure.eval.protocols.instances.prompts import KEPT, InstanceRequest, known_requests
from erasure.eval.protocols.instances.record import ORIGINAL, InstanceRecord, InstanceState
from erasure.eval.stats.scores import Rate, Score, kept_rate
from erasure.io.files import make_folder, write_whole
from erasure.judge import Judge, shows_each
from erasure.personalize.class_diffusion import ClassDiffusion, Instance
from erasure.personalize.folder import Learned
from erasure.personalize.forgetting import Forgetting
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, progress_bars, staged
from erasure.provenance import provenance
from erasure.runs import schema
from erasure.tinyworld import vocabulary
from erasure.tinyworld.world import compose, draw
from erasure.training.context import FitContext

from .experiment import plain_options, recorded

VERSION = 1
LEARNED, TOKEN, CLASS = "Rusty", "<rusty>", "dog"
REMOVED = "Biscuit"
PLACES = ("plain", "beach", "forest", "snow", "city")
ARMS: Mapping[str, Mapping[str, Any]] = {
    "lambda 0": {"spl_weight": 0.0},
    "lambda 0.01": {"spl_weight": 0.01},
    "lambda 1": {"spl_weight": 1.0},
    "lambda 100": {"spl_weight": 100.0},
    "lambda 1, official argmax": {"spl_weight": 1.0, "spl_pooling": "official_argmax"},
    "lambda 100, official argmax": {"spl_weight": 100.0, "spl_pooling": "official_argmax"},
    "lambda 1, augmented": {"spl_weight": 1.0, "augment": True},
}
"""Settings of each arm of learning, beside those for the tiny world."""

_SHORT: Mapping[str, Any] = {  # as in configs/esd/sequence-tinyworld.yaml
    "steps": 150,
    "lr": 1e-4,
    "batch_size": 8,
    "sample_steps": 20,
    "trajectory_uses": 4,
    "prompts": "templates",
}
REMOVALS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "UCE": ("uce", {}),
    "UCE, class phrases": ("uce", {"class_phrases": True}),
    "ESD": ("esd", _SHORT),
    "ESD, semantic-kv": ("esd", {**_SHORT, "preservation": {"semantic-kv": 1.0}}),
    "ESD, semantic-kv x 100": ("esd", {**_SHORT, "preservation": {"semantic-kv": 100.0}}),
    "ESD, semantic-noise": ("esd", {**_SHORT, "preservation": {"semantic-noise": 1.0}}),
    "ESD, semantic-noise x 100": ("esd", {**_SHORT, "preservation": {"semantic-noise": 100.0}}),
    "ESD, semantic-noise x 1000": ("esd", {**_SHORT, "preservation": {"semantic-noise": 1000.0}}),
    "DUGE": ("duge", {}),
    "DUGE, semantic-kv": ("duge", {"preservation": {"semantic-kv": 1.0}}),
    "DUGE, semantic-kv x 5": ("duge", {"preservation": {"semantic-kv": 5.0}}),
    "DUGE, semantic-kv x 30": ("duge", {"preservation": {"semantic-kv": 30.0}}),
    "TRCE": ("trce", {}),
    "TRCE, semantic-noise": ("trce", {"preservation": {"semantic-noise": 1.0}}),
    "TRCE, semantic-noise x 100": ("trce", {"preservation": {"semantic-noise": 100.0}}),
}
"""Arms of removing Biscuit: the eraser, and its settings beside those for the tiny world.

The loss has the weight 1 where none is named; the others show what more of it trades.
"""


def drawings(name: str = LEARNED) -> list[Image.Image]:
    """Return the five images that an individual is learned from."""
    rng = random.Random(f"images of {name}")
    return [draw(compose([name], rng, scene=scene)) for scene in PLACES]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Model, folders and sizes that both experiments share.

    Attributes:
        pipe: The tiny world's model.
        work: Folder of fits and images.
        composed: Images of the instance in company, and as many of it alone.
        kept: Images of each group that should stay.
        on_progress: Receives the progress of each stage.
    """

    pipe: DiffusionPipeline
    work: Path
    composed: int
    kept: int
    on_progress: OnProgress

    def fitted(self, name: str, fit: Callable[..., WeightEdit]) -> WeightEdit:
        """Return the edit of that name, made if it is not there yet."""
        path = self.work / "edits" / f"{name.replace(' ', '-').replace(',', '')}.safetensors"
        if not path.is_file():
            make_folder(path.parent)
            fit(on_progress=staged(self.on_progress, name)).save(path)
        return WeightEdit.load(path)

    def record(self, instance: Learned) -> InstanceRecord:
        """Return the record that samples and measures an instance's images."""
        return InstanceRecord(
            folder=self.work,
            pipe=self.pipe,
            base=DEFAULT_MODEL,
            instance=instance,
            images=drawings(),
            composed=self.composed,
            kept=self.kept,
        )


def learn(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Return the results of learning and forgetting Rusty for each weight of the loss and each seed."""
    record = bench.record(Learned(token=TOKEN, class_word=CLASS))
    metrics = record.metrics()
    named = Identity(oracle=tinyworld.load_oracle(), individual=LEARNED)
    backbone = backbone_of(bench.pipe)
    rows: dict[str, Any] = {}
    shown: dict[str, InstanceState] = {}
    instance = Instance(token=TOKEN, class_word=CLASS, images=drawings())
    changes = {} if options.steps is None else {"steps": options.steps}
    for seed in options.fit_seeds:
        for arm, settings in ARMS.items():
            method = ClassDiffusion(
                **{**profile_of(DEFAULT_MODEL).settings(ClassDiffusion.name), **settings, **changes}
            )
            edit = bench.fitted(f"learned {arm}, seed {seed}", partial(method.fit, backbone, [instance], seed=seed))
            forgetting = partial(Forgetting(**changes).fit, backbone, edit, TOKEN)
            forgotten = bench.fitted(f"forgotten {arm}, seed {seed}", forgetting)
            states = record.measure({arm: edit, f"{arm}, forgotten": forgotten}, metrics, bench.on_progress)
            for state in states:
                if state.name == ORIGINAL and state.name in rows:
                    continue
                rows.setdefault(state.name, []).append(
                    {"seed": seed, **_told(state, record.requests, named), **_word(edit, state.name == arm)}
                )
                shown.setdefault(state.name, state)
    _sheet(options.out / "pictures.png", record.requests, [shown[ORIGINAL], *(shown[arm] for arm in ARMS)])
    _sheet(
        options.out / "forgotten.png",
        record.requests,
        [shown[ORIGINAL], shown["lambda 1"], shown["lambda 1, forgotten"]],
    )
    return {"individual": LEARNED, "settings": profile_of(DEFAULT_MODEL).settings(ClassDiffusion.name), "rows": rows}


def _told(state: InstanceState, requests: Sequence[InstanceRequest], named: Identity) -> dict[str, Any]:
    """Return a state's scores, and how often the oracle, which knows the individual, recognises it by group."""
    scores = state.scores.as_json() if state.scores is not None else {}
    reading = named.oracle.read(list(state.images))
    seen, like = reading.sees(named.individual), named.of(reading.features)
    groups = {}
    for group in ("alone", "composed", "class"):
        here = np.array([request.group == group for request in requests])
        groups[group] = {
            "recognised": Rate.of(seen[here]).as_json(),
            "identity": Score.mean(like[here], unit="cosine", higher_is_better=True).as_json(),
        }
    return {**scores, "individual": groups}


def _word(edit: WeightEdit, learned: bool) -> dict[str, Any]:
    """Return the norm of the new word's embedding, for an edit that learned it."""
    if not learned:
        return {}
    return {"word_norm": float(edit.tokens[0].rows["text_encoder"].norm())}


def remove(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Return the effect of each eraser, without and with semantic preservation, on Biscuit, its class and the rest."""
    requests = removal_requests(bench.composed, bench.kept)
    record = replace(bench.record(Learned(token=REMOVED, class_word=CLASS)), fixed_requests=tuple(requests))
    judge = tinyworld.load_oracle()
    concept = schema.parse({"concepts": [{"target": REMOVED}]}).concepts[0]
    rows: dict[str, Any] = {}
    shown: dict[str, InstanceState] = {}
    for arm, (name, settings) in REMOVALS.items():
        changes = {} if options.steps is None or "steps" not in settings else {"steps": options.steps}
        eraser = make_eraser(name, **{**profile_of(DEFAULT_MODEL).settings(name), **settings, **changes})
        context = partial(FitContext, backbone=backbone_of(bench.pipe))
        edit = bench.fitted(
            arm,
            lambda on_progress, eraser=eraser, context=context: eraser.fit([concept], context(on_progress=on_progress)),
        )
        states = record.measure({arm: edit}, None, bench.on_progress)
        for state in states:
            if state.name not in rows:
                rows[state.name] = _removed(state, states[0], requests, judge)
                shown[state.name] = state
    _sheet(options.out / "pictures.png", requests, list(shown.values()))
    return {"individual": REMOVED, "preserved": list(concept.preserve), "rows": rows}


def removal_requests(removed: int, kept: int) -> list[InstanceRequest]:
    """Return the requests for a model without Biscuit: the individual, its class, its siblings and the rest."""
    others = [
        request
        for request in known_requests(profile_of(DEFAULT_MODEL), CLASS, composed=1, kept=kept, without=(REMOVED,))
        if request.group in KEPT
    ]
    prompts = vocabulary.prompts_for(REMOVED, removed, seed=1)
    alone = [
        InstanceRequest(group="alone", prompt=prompt, seed=4_000_000 + i, name=REMOVED)
        for i, prompt in enumerate(prompts)
    ]
    return [*alone, *others]


def _removed(
    state: InstanceState, original: InstanceState, requests: Sequence[InstanceRequest], judge: Judge
) -> dict[str, Any]:
    """Return the four shares: the individual gone, and its class, its siblings and the rest kept."""
    names = [request.name for request in requests]
    before, after = (np.array(shows_each(judge, each.images, names)) for each in (original, state))
    groups = np.array([request.group for request in requests])
    kept = {group: kept_rate(before[groups == group], after[groups == group]) for group in KEPT}
    return {
        "gone": Rate.of(~after[groups == "alone"]).as_json(),
        "kept": {group: rate and rate.as_json() for group, rate in kept.items()},
    }


def _sheet(path: Path, requests: Sequence[InstanceRequest], states: Sequence[InstanceState]) -> None:
    """Write the first images of each group, a row each, a column a state."""
    rows = [i for group in ("alone", "composed", *KEPT) for i in _first(requests, group)]
    sheet = side_by_side(
        [state.name for state in states],
        [requests[i].filled(states[-1].phrase) for i in rows],
        [[state.images[i] for state in states] for i in rows],
        cell=112,
    )
    make_folder(path.parent)
    write_whole(path, as_png(sheet))


def _first(requests: Sequence[InstanceRequest], group: str) -> list[int]:
    results = [i for i, request in enumerate(requests) if request.group == group]
    return results[:: max(1, len(results) // 4)][:4] if group == "composed" else results[:2]


def main() -> None:
    """Run one of the two experiments and write run.json and a sheet of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("experiment", choices=("learn", "remove"))
    parser.add_argument("--composed", type=int, default=96, help="images of the instance alone, and in company")
    parser.add_argument("--kept", type=int, default=60, help="images of each group that should stay")
    parser.add_argument("--fit-seeds", type=int, nargs="+", default=[0], help="seeds of the fits of learn")
    parser.add_argument("--steps", type=int, help="steps of each fit that takes them, for a trial")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/instances"))
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json and the images")
    recorded(experiment, parser.parse_args())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one of the two experiments."""
    began = time.perf_counter()
    with progress_bars() as on_progress:
        bench = Bench(
            pipe=tinyworld.load(),
            work=options.work / options.experiment,
            composed=options.composed,
            kept=options.kept,
            on_progress=on_progress,
        )
        results = {"learn": learn, "remove": remove}[options.experiment](bench, options)
    return {
        "benchmark": f"instances-{options.experiment}",
        "version": VERSION,
        "config": plain_options(options),
        "sampler": bench.record(Learned(token=TOKEN, class_word=CLASS)).sampler.as_settings(),
        "model": backbone_of(bench.pipe).fingerprint(),
        **results,
        **provenance(start=began),
    }


if __name__ == "__main__":
    main()
