"""Eight removals in a row on the tiny world: what is forgotten, what comes back, and what erodes besides.

    python -m experiments.continual --config configs/duge/continual-tinyworld.yaml --order a --out results/continual/x

A run is one method, order and seed. It is measured before the first removal and after the first, the fourth and the
eighth, by the oracle, with the same prompts and seeds throughout. Requests come one at a time: none knows the next.
What is made on the way lies in `--work`; killed at any moment, the same command goes on from there.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from diffusers import DiffusionPipeline
from PIL.Image import Image
from rich.console import Console
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.backbones.attention import cross_attention_layers
from erasure.concept import Concept
from erasure.edits import WeightEdit
from erasure.errors import InputError
from erasure.eval.images.store import ImageStore, fill
from erasure.eval.metrics.fid import fid
from erasure.eval.metrics.kid import kid
from erasure.eval.protocols.plans import PlannedImage, Role, known_images, pairs_of
from erasure.eval.stats.aggregates import (
    backward_transfer,
    erosion_slope,
    forgotten_per_removed,
    generalization_erosion,
    retention_accuracy,
    unlearning_accuracy,
)
from erasure.eval.stats.scores import Rate
from erasure.io.files import make_folder, write_whole
from erasure.ledger import Ledger
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, Progress, progress_bars, staged
from erasure.provenance import provenance
from erasure.runs.configs import read_config
from erasure.runs.overrides import override
from erasure.runs.schema import MeasureSettings, Run, parse
from erasure.tinyworld import vocabulary
from erasure.training.context import FitContext

from .experiment import recorded, work_folder

VERSION = 1
TARGETS: Final = ("cat", "neon", "church", "gun", "car", "Biscuit", "flower", "umbrella")
ORDERS: Final[Mapping[str, tuple[str, ...]]] = {"a": TARGETS, "b": TARGETS[::-1]}
NEAR: Final = (
    *("dog", "rabbit", "bird", "tree", "mushroom", "house"),
    *("castle", "cart", "boat", "knife", "mosaic", "guitar"),
)
"""Siblings of a target that are never removed."""
FAR: Final = ("hammer", "scissors", "beach", "forest", "night", "snow", "desert", "city")
ROLES: Final[Mapping[Role, tuple[str, ...]]] = {"removed": TARGETS, "near": NEAR, "far": FAR}
POINTS: Final = (1, 4, 8)


@dataclass(kw_only=True)
class Removals:
    """A sequence of removals on disk, by way of a ledger: closed-form ones are solved together.

    Attributes:
        folder: Folder of the removals.
        pipe: The unedited model.
        run: The method.
        memory: Folder for what is made of the original model, shared by all runs; what it holds is named by its
            content.
    """

    folder: Path
    pipe: DiffusionPipeline
    run: Run
    memory: Path

    def __post_init__(self) -> None:
        self.ledger = Ledger.open_or_create(self.folder, self.pipe, DEFAULT_MODEL)
        make_folder(self.memory)
        if not (self.folder / "memory").exists():
            (self.folder / "memory").symlink_to(self.memory.resolve(), target_is_directory=True)

    def __len__(self) -> int:
        return len(self.ledger.entries)

    def add(self, concept: Concept, on_progress: OnProgress | None) -> float:
        """Remove one concept more, and return the seconds of the fit."""
        judge = profile_of(DEFAULT_MODEL).judge()
        entry = self.ledger.remove(
            self.pipe, self.run.eraser, [concept], on_progress=on_progress, seed=self.run.seed, judge=judge
        )
        return float(entry.seconds or 0)

    @contextmanager
    def applied(self, n: int) -> Iterator[None]:
        """Apply the first n removals."""
        if not n:
            yield
            return
        with self.ledger.applied_to(self.pipe, upto=self.ledger.entries[n - 1].id):
            yield


class InPlace(Removals):
    """The same without a ledger: each removal is fitted on the weights that the last one left, and changes those."""

    def __post_init__(self) -> None:
        make_folder(self.folder)

    def __len__(self) -> int:
        return len(list(self.folder.glob("*.safetensors")))

    def add(self, concept: Concept, on_progress: OnProgress | None) -> float:
        n = len(self)
        began = time.perf_counter()
        with self.applied(n):
            edit = self.run.eraser.fit(
                [concept], FitContext(backbone=backbone_of(self.pipe), on_progress=on_progress, seed=self.run.seed)
            )
        seconds = time.perf_counter() - began
        edit.save(self.folder / f"{n + 1:03d}.safetensors")
        return seconds

    @contextmanager
    def applied(self, n: int) -> Iterator[None]:
        with ExitStack() as stack:
            for i in range(1, n + 1):
                edit = WeightEdit.load(self.folder / f"{i:03d}.safetensors")
                stack.enter_context(edit.applied_to(self.pipe, check=False))
            yield


@dataclass(frozen=True, kw_only=True)
class StateReading:
    """Readings of the images of one state.

    Attributes:
        seen: For each probe, whether the image shows what was asked for.
        features: The judge's, of the kept concepts' images.
    """

    seen: np.ndarray
    features: Tensor


def main() -> None:
    """Go through one sequence and write run.json, and one image of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a config of `erasure remove`; its eraser is used")
    parser.add_argument("--order", choices=ORDERS, default="a")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fits")
    parser.add_argument("--in-place", action="store_true", help="fit each on the last weights, without a ledger")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `erasure remove`")
    parser.add_argument("--images", type=int, default=50, help="images of each concept")
    parser.add_argument("--points", type=int, nargs="+", default=list(POINTS), help="removals after which to measure")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/continual"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    Console().print(summary(recorded(experiment, parser.parse_args())), highlight=False)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Make the removals that are missing, measure at the points, and return the record."""
    began = time.perf_counter()
    config: Mapping[str, Any] = {**read_config(options.config), "seed": options.seed}
    for assignment in options.set:
        config = override(config, assignment)
    targets = ORDERS[options.order]
    if not all(0 < n <= len(targets) for n in options.points):
        raise InputError(f"--points: expected numbers from 1 to {len(targets)}, got {options.points}.")
    requests = [parse({**config, "concepts": [{"target": name}]}) for name in targets]
    run, concepts = requests[0], [request.concepts[0] for request in requests]
    pipe = tinyworld.load()
    facts = [VERSION, options.in_place, [request.as_json() for request in requests]]
    work = work_folder(options.work, options.out.name, pipe, *facts)
    kind = InPlace if options.in_place else Removals
    removals = kind(folder=work / "removals", pipe=pipe, run=run, memory=options.work / "memory")
    settings = replace(run.measure or MeasureSettings(), seed=1)
    forbidden = [word for name in TARGETS for word in (name, *vocabulary.SYNONYMS.get(name, ()))]
    probes = [
        probe
        for role, names in ROLES.items()
        for name in names
        for probe in known_images(
            profile_of(DEFAULT_MODEL), name, role, options.images, settings, () if role == "removed" else forbidden
        )
    ]
    sampler = settings.sampling(DEFAULT_MODEL)
    eyes = _Eyes(probes)
    with progress_bars() as on_progress:
        times = _removed(removals, concepts, work / "times.json", on_progress, max(options.points))
        weights = _cross_attention(pipe)
        looks, drifts = {}, {}
        for n in (0, *options.points):
            folder = work if n else work_folder(options.work, "original", pipe)
            store = ImageStore.of_state(folder / "pictures", f"after-{n}", pairs_of(probes), sampler)
            with removals.applied(n):
                fill(pipe, store, on_progress=staged(on_progress, f"images after {n}"))
                drifts[n] = _drift(weights, _cross_attention(pipe))
            looks[n] = eyes.look(store.images())
    measured = {n: _measured(probes, looks[n], looks[0], targets[:n], drifts[n]) for n in looks}
    return {
        "benchmark": "continual",
        "version": VERSION,
        "config": {**run.as_json(), "concepts": [concept.as_json() for concept in concepts]},
        "order": options.order,
        "in_place": options.in_place,
        "seed": options.seed,
        "targets": list(targets),
        "near": list(NEAR),
        "far": list(FAR),
        "pictures": options.images,
        "sampler": {"steps": sampler.steps, "guidance_scale": sampler.guidance_scale, "scheduler": "DDIM"},
        "model": backbone_of(pipe).fingerprint(),
        "removals": times,
        "points": {str(n): point for n, point in measured.items()},
        "backward_transfer": _transfer(measured, targets),
        "slope": erosion_slope([measured[n]["ge"] for n in (0, *options.points)], steps=[0, *options.points]),
        **provenance(start=began),
    }


def summary(record: Mapping[str, Any]) -> str:
    """Return a line a point."""
    lines = [
        f"after {n}: UA {point['ua']}, RA near {point['ra_near']:.3f}, far {point['ra_far']:.3f}, GE {point['ge']:.3f},"
        f" FD {point['fd']}, drift {point['drift']:.4f}"
        for n, point in record["points"].items()
    ]
    return "\n".join([*lines, f"slope of GE: {record['slope']:.4f} a removal"])


class _Eyes:
    """The oracle, which tells what an image shows, and the judge, whose features make distances."""

    def __init__(self, probes: Sequence[PlannedImage]) -> None:
        self.probes = probes
        self.oracle, self.judge = tinyworld.load_oracle(), tinyworld.load_clip()

    def look(self, images: Sequence[Image]) -> StateReading:
        """Return the reading of the images of all probes, in order."""
        reading = self.oracle.read(images)
        names = [probe.name for probe in self.probes]
        seen = np.array([bool(reading.sees(name)[i]) for i, name in enumerate(names)])
        kept = [image for image, name in zip(images, names, strict=True) if name not in TARGETS]
        return StateReading(seen=seen, features=self.judge.image_features(kept))


def _removed(removals: Removals, concepts: Sequence[Concept], file: Path, on_progress: OnProgress, n: int) -> list[Any]:
    """Make the removals that are missing up to n, and return each one's times."""
    times = json.loads(file.read_text()) if file.is_file() else []
    for i in range(len(removals), n):
        stage = f"removing {concepts[i].target}"
        moments: list[float] = []

        def noted(progress: Progress, stage: str = stage, moments: list[float] = moments) -> None:
            if progress.stage == "fit":
                moments.append(time.perf_counter())
            on_progress(replace(progress, stage=stage))

        seconds = removals.add(concepts[i], noted)
        training = (moments[-1] - moments[0]) * len(moments) / (len(moments) - 1) if len(moments) > 1 else seconds
        times = [
            *times[:i],
            {
                "target": concepts[i].target,
                "updates": len(moments),
                "training_seconds": round(training, 2),
                "seconds": round(seconds, 2),
            },
        ]
        write_whole(file, json.dumps(times).encode())
    if len(times) < n:
        raise InputError(
            f"{file}: expected the times of {n} removals, got {len(times)}. Delete its folder; begin anew."
        )
    return times[:n]


def _measured(
    probes: Sequence[PlannedImage], look: StateReading, before: StateReading, removed_names: Sequence[str], drift: float
) -> dict[str, Any]:
    """Return DUGE's measures of one state, and what they come from."""
    names = np.array([probe.name for probe in probes])
    rates = {name: Rate.of(look.seen[names == name]) for name in dict.fromkeys(names.tolist())}
    shares = {name: rate.value for name, rate in rates.items()}
    first = {name: Rate.of(before.seen[names == name]).value for name in shares}
    unseen = Rate.of(~look.seen[np.isin(names, list(removed_names))]) if removed_names else None
    distances = {"fd": fid, "kid": kid} if len(look.features) >= 1000 and look is not before else {}
    return {
        "ua": unlearning_accuracy([shares[name] for name in removed_names]) if removed_names else None,
        "ua_interval": list(unseen.interval) if unseen else None,
        "ra_near": retention_accuracy([shares[name] for name in NEAR]),
        "ra_near_interval": list(Rate.of(look.seen[np.isin(names, NEAR)]).interval),
        "ra_far": retention_accuracy([shares[name] for name in FAR]),
        "ra_far_interval": list(Rate.of(look.seen[np.isin(names, FAR)]).interval),
        "ge": generalization_erosion([first[name] for name in (*NEAR, *FAR)], [shares[n] for n in (*NEAR, *FAR)]),
        "forgotten_per_removed": forgotten_per_removed(
            *([side[name] for name in (*NEAR, *FAR)] for side in (first, shares)),
            *([1 - side[name] for name in removed_names] for side in (first, shares)),
        ),
        "fd": None,
        "kid": None,
        **{name: float(measure(before.features, look.features)) for name, measure in distances.items()},
        "drift": drift,
        "accuracy": {name: rate.as_json() for name, rate in rates.items()},
    }


def _transfer(measured: Mapping[int, Mapping[str, Any]], targets: Sequence[str]) -> float | None:
    """Return the backward transfer up to the last point, of the targets that an earlier point measured first."""
    *earlier, last = sorted(n for n in measured if n)
    seen: dict[str, float] = {}
    for n in earlier:
        for name in targets[:n]:
            seen.setdefault(name, 1 - measured[n]["accuracy"][name]["value"])
    return backward_transfer(list(seen.values()), [1 - measured[last]["accuracy"][name]["value"] for name in seen])


def _cross_attention(pipe: DiffusionPipeline) -> list[Tensor]:
    """Return a copy of all weights of cross-attention."""
    layers = cross_attention_layers(backbone_of(pipe))
    return [parameter.detach().clone() for layer in layers.values() for parameter in layer.parameters()]


def _drift(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return |after - before| / |before|."""
    moved = sum(float((one - other).square().sum()) for one, other in zip(before, after, strict=True))
    return (moved / sum(float(weight.square().sum()) for weight in before)) ** 0.5


if __name__ == "__main__":
    main()
