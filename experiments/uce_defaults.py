"""Choice of UCE's defaults on the tiny world, on prompts and seeds that no reported result has.

    python -m experiments.uce_defaults --out results/uce-defaults

Four concepts are removed jointly, as a ledger does; of them only bomb, a weapon, is in reported results. Every setting
is measured in the denoiser's predictions, on noised images of the original model: how much of the concept is left, how
far kept concepts move, also where few of them are preserved. Those that leave least within each bound on the moves, and
the former defaults, are measured in images. `chosen` states the rule. Each setting that is done lies in `--work`;
killed at any moment, the same command goes on from there.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from erasure import tinyworld
from erasure.backbones import backbone_of
from erasure.closed_form.joint import joined_rows
from erasure.closed_form.problem import Rows
from erasure.closed_form.solve import solve
from erasure.concept import Concept, normalized
from erasure.edits import EditMetadata, WeightEdit
from erasure.erasers.uce import UCE
from erasure.eval.protocols.plans import PlannedImage, plan_known
from erasure.eval.stats.scores import Rate
from erasure.io.files import make_folder, write_whole
from erasure.io.tensor_cache import stored
from erasure.profile import DEFAULT_MODEL, profile_of
from erasure.progress import OnProgress, ProgressCounter, progress_bars
from erasure.prompts import without_phrases
from erasure.provenance import provenance
from erasure.runs.schema import MeasureSettings
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext

from .experiment import plain_options, recorded

VERSION = 1
CONCEPTS = ("dog", "mosaic", "bomb", "castle")
SEED = 11
TIMESTEPS = (900, 700)  # what an image shows is decided at high noise
NEAR_FLOOR, FAR_FLOOR = 0.95, 0.97
BOUNDS = (1.0, 0.9, 0.75)  # of the move that the former defaults cause
FEW_BOUND = 1.1  # the same where few concepts are preserved
FEW = 5  # one preserved concept of so many

FORMER: Mapping[str, Any] = {
    "strength": 1.3,
    "preserve_scale": 0.1,
    "anchor_scale": 0.1,
    "trailing": 0.75,
    "trailing_states": 2,
    "reg": 0.5,
    "empty_anchor": "end",
}
_WIDE = {"trailing_states": 6, "trailing": 0.9, "anchor_scale": 1.0}
_ALONE: tuple[Mapping[str, Any], ...] = (
    {},
    {"trailing_states": 6},
    {"trailing_states": 24},
    {"trailing": 0.9},
    {"anchor_scale": 1.0},
    {"preserve_scale": 0.3},
    {"strength": 1.6},
)
_PAIRS = ((0.1, 1.3), (0.2, 1.6), (0.4, 1.8), (0.8, 1.8), (0.8, 2.2), (1.6, 3.0))
_TOGETHER: tuple[Mapping[str, Any], ...] = (
    *({"preserve_scale": scale, "strength": strength} for scale, strength in _PAIRS),
    *({"preserve_scale": 0.4, "strength": 1.8, **other} for other in ({"trailing_states": 4}, {"trailing": 0.75})),
)
CELLS = ([{**FORMER, **cell} for cell in _ALONE], [{**FORMER, **_WIDE, **cell} for cell in _TOGETHER])
PLACES = ("the name", "the words after it", "the first end of text", "the states after it")
"""Positions of a sentence whose states are exchanged in the diagnosis."""


def main() -> None:
    """Measure the settings and write run.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=8, help="sampling steps of an image")
    parser.add_argument("--work", type=Path, default=Path("erasure-runs/uce-defaults"))
    parser.add_argument("--out", type=Path, required=True, help="folder for run.json")
    recorded(experiment, parser.parse_args())


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """Return the record of all settings, of the chosen one, and of what is left by position."""
    began = time.perf_counter()
    cells = [cell for group in CELLS for cell in group]
    with progress_bars() as on_progress:
        trial = Trial(options.work, options.steps)
        count = ProgressCounter(on_progress, len(cells), "settings")
        predicted = []
        for cell in cells:
            predicted.append(trial.kept("predictions", cell, trial.in_predictions))
            count.add()
        indices = [0, *best(predicted)]
        finalists = [cells[i] for i in indices]
        imaged = [trial.kept("images", cell, lambda cell: trial.in_images(cell, on_progress)) for cell in finalists]
        choice = chosen(imaged, [left(predicted[i]) for i in indices])
        diagnosis = [trial.kept("diagnosis", cell, trial.by_place) for cell in (cells[0], finalists[choice])]
    return {
        "benchmark": "uce-defaults",
        "version": VERSION,
        "config": {**plain_options(options), "concepts": list(CONCEPTS), "seed": SEED, "timesteps": list(TIMESTEPS)},
        "floors": {"near": NEAR_FLOOR, "far": FAR_FLOOR},
        "bounds": {"moves": list(BOUNDS), "with_few": FEW_BOUND, "one_in": FEW},
        "former": dict(FORMER),
        "chosen": dict(finalists[choice]),
        "predictions": predicted,
        "images": imaged,
        "diagnosis": diagnosis,
        **provenance(start=began),
    }


def best(predicted: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return for each bound on the move of kept concepts the setting that leaves least; each once.

    The first setting is the former one: the bounds are shares of its moves. Least is the larger of the shares left in
    plain and in held-out phrasings.
    """
    taken: list[int] = []
    for bound in BOUNDS:
        bounds = {"near": bound, "far": bound, "near_few": FEW_BOUND, "far_few": FEW_BOUND}
        within = [
            i
            for i, row in enumerate(predicted)
            if i not in [0, *taken] and all(row[role] <= share * predicted[0][role] for role, share in bounds.items())
        ]
        taken += sorted(within, key=lambda i: left(predicted[i]))[:1]
    return taken


def left(row: Mapping[str, Any]) -> float:
    """Return the larger of the shares left in plain and in held-out phrasings."""
    return max(row["plain"], row["held_out"])


def chosen(imaged: Sequence[Mapping[str, Any]], left_shares: Sequence[float]) -> int:
    """Return the index of the setting with the highest smaller one of plain and held-out efficacy.

    Of those that keep at least `NEAR_FLOOR` and `FAR_FLOOR`; if none does, of those that keep as much near and far as
    the first, the former. Of equals the one that leaves less in predictions, then the smaller edit: all may remove
    every image.
    """

    def above(near: float, far: float) -> list[int]:
        return [i for i, row in enumerate(imaged) if rate(row, "near") >= near and rate(row, "far") >= far]

    allowed = above(NEAR_FLOOR, FAR_FLOOR) or above(rate(imaged[0], "near"), rate(imaged[0], "far"))

    def merit(i: int) -> tuple[float, float, float]:
        return min(rate(imaged[i], "plain"), rate(imaged[i], "held_out")), -left_shares[i], -imaged[i]["size"]

    return max(allowed, key=merit)


def rate(row: Mapping[str, Any], name: str) -> float:
    """Return a share of images: with the concept gone, or kept."""
    return row[name]["hits"] / row[name]["n"]


class Trial:
    """Measures of settings on one set of prompts and seeds.

    Args:
        work: Folder of what is done.
        steps: Sampling steps of an image.
    """

    def __init__(self, work: Path, steps: int) -> None:
        self._profile = profile_of(DEFAULT_MODEL)
        self._pipe = tinyworld.load()
        self._backbone = backbone_of(self._pipe)
        self._work, self._oracle = work, tinyworld.load_oracle()
        self._sampler = replace(SamplingSettings.of(DEFAULT_MODEL), steps=steps)
        requests = self._profile.completed([{"target": name} for name in CONCEPTS])
        self._concepts = [Concept.from_json(request) for request in requests]
        self._probes = self._planned(8, 28)
        prompts = [probe.prompt for probe in self._probes]
        self._states = self._backbone.encode(prompts)
        self._blanks = self._backbone.encode([self._blank(probe) for probe in self._probes])
        self._noisy = self._noised(prompts)
        self._before, self._without = self._predicted(self._states.states), self._predicted(self._blanks.states)

    def kept(self, what: str, cell: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
        """Return the record of one setting, from the disk where it is done."""
        name = "-".join(f"{value}" for value in cell.values())
        path = self._work / what / f"{name}.json"
        if not path.is_file():
            record = {"settings": dict(cell), **make(cell)}
            make_folder(path.parent)
            write_whole(path, (json.dumps(record) + "\n").encode())
        return json.loads(path.read_text(encoding="utf-8"))

    def in_predictions(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Return the share of removed concepts that is left, and the move of kept ones as a share of their effect."""
        parts = self._parts(cell)
        predicted, with_few = (self._predicted(self._mapped(each)) for each in (parts, self._with_few(parts)))
        left, moved, moved_with_few = self._left(predicted), self._moved(predicted), self._moved(with_few)
        return {
            "plain": float(left[self._where("removed", False)].mean()),
            "held_out": float(left[self._where("removed", True)].mean()),
            **{role: float(moved[self._where(role)].mean()) for role in ("near", "far")},
            **{f"{role}_few": float(moved_with_few[self._where(role)].mean()) for role in ("near", "far")},
        }

    def in_images(self, cell: Mapping[str, Any], on_progress: OnProgress | None) -> dict[str, Any]:
        """Return the rates of removed concepts that are gone and of kept ones that stay, of those seen before."""
        probes = self._planned(12, 56)
        rows = joined_rows(self._parts(cell))
        metadata = EditMetadata.of(UCE.name, asdict(UCE(**cell)), self._backbone, self._concepts, 0)
        edit = WeightEdit.from_rows(rows, list(self._backbone.sites(reads="text")), metadata)
        seen = np.array(self.kept("before", {}, lambda _: {"seen": self._seen(probes, on_progress)})["seen"])
        there = [probe for probe, before in zip(probes, seen, strict=True) if before]
        with edit.applied_to(self._pipe):
            after = np.array(self._seen(there, on_progress))
        removed = np.array([probe.role == "removed" for probe in there])
        held_out = np.array([probe.held_out for probe in there], dtype=bool)
        roles = {role: np.array([probe.role == role for probe in there]) for role in ("near", "far")}
        names = {name: removed & np.array([probe.name == name for probe in there]) for name in CONCEPTS}
        return {
            "plain": Rate.of(~after[removed & ~held_out]).as_json(),
            "held_out": Rate.of(~after[removed & held_out]).as_json(),
            **{role: Rate.of(after[where]).as_json() for role, where in roles.items()},
            "concepts": {name: Rate.of(~after[where]).as_json() for name, where in names.items()},
            "size": float(solve(rows).minus_identity().norm()),
        }

    def by_place(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shares of the first concept left, also with some states taken from the prompt without it."""
        mapped = self._mapped(self._parts(cell))
        ideal, places = self._ideal()
        ways = {
            "nothing": torch.zeros_like(places, dtype=torch.bool),
            **{name: places == number for number, name in enumerate(PLACES, start=1)},
            "the end of text and the states after it": places >= 3,
        }
        rows = {}
        for way, exchanged in ways.items():
            left = self._left(self._predicted(torch.where(exchanged[..., None], ideal, mapped)))
            mine = torch.tensor([probe.name == CONCEPTS[0] and probe.role == "removed" for probe in self._probes])
            rows[way] = {
                key: float(left[mine & self._where("removed", held)].mean())
                for key, held in (("plain", False), ("held_out", True))
            }
        return {"concept": CONCEPTS[0], "exchanged": rows}

    def _planned(self, removed: int, kept: int) -> list[PlannedImage]:
        """Return as many probes of each concept in plain and in held-out phrasings, and of near and far ones."""
        settings = MeasureSettings(per_concept=10 * removed, near=kept, far=kept, seed=SEED)
        probes = plan_known(self._profile, CONCEPTS, settings).probes
        parts = [
            [probe for probe in probes if (probe.role, probe.name, probe.held_out) == ("removed", name, held_out)]
            for name in CONCEPTS
            for held_out in (False, True)
        ]
        return [
            *(probe for part in parts for probe in part[:removed]),
            *(probe for probe in probes if probe.role != "removed"),
        ]

    def _parts(self, cell: Mapping[str, Any]) -> list[Rows]:
        context = FitContext(backbone=self._backbone)
        return [UCE(**cell).rows_of([concept], context) for concept in self._concepts]

    def _with_few(self, parts: Sequence[Rows]) -> list[Rows]:
        """Return the problems as they were with few preserved concepts."""
        return [
            replace(
                part,
                preserve=part.preserve[keep],
                preserve_weights=part.preserve_weights[keep],
                preserve_labels=tuple(part.preserve_labels[i] for i in keep),
                preserve_sites=tuple(part.preserve_sites[i] for i in keep),
            )
            for part, concept in zip(parts, self._concepts, strict=True)
            for few in [{"", *map(normalized, concept.preserve[::FEW])}]
            for keep in [[i for i, label in enumerate(part.preserve_labels) if label in few]]
        ]

    def _mapped(self, parts: Sequence[Rows]) -> Float[Tensor, "n tokens dim"]:
        """Return the prompts' states as the edited layers read them."""
        states = self._states.states
        return states @ solve(joined_rows(parts)).matrix().to(states.dtype).T

    def _blank(self, probe: PlannedImage) -> str:
        """Return the prompt without the removed concept; of a kept concept, the empty prompt."""
        if probe.role != "removed":
            return ""
        return without_phrases(probe.prompt, self._concepts[CONCEPTS.index(probe.name)].names)

    def _noised(self, prompts: Sequence[str]) -> list[Float[Tensor, "n c h w"]]:
        """Return the original model's latents with noise, for each timestep."""
        seeds = [probe.seed for probe in self._probes]
        key = [VERSION, self._backbone.fingerprint(), prompts, seeds, self._sampler.as_settings()]
        clean = stored(
            self._work / "latents",
            key,
            lambda: {"latents": sample(self._pipe, prompts, seeds, self._sampler, output="latents")},
        )["latents"]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
        return [self._backbone.schedule.noised(clean, noise, torch.tensor(timestep)) for timestep in TIMESTEPS]

    def _predicted(self, states: Float[Tensor, "n tokens dim"]) -> Float[Tensor, "n numbers"]:
        """Return the denoiser's outputs for text states, those of all timesteps beside each other."""
        rows = [list(range(i, min(i + 24, len(states)))) for i in range(0, len(states), 24)]
        conditioning = self._states.with_states(states)
        with torch.no_grad():
            outputs = [
                torch.cat(
                    [self._backbone.predict(x[part], torch.tensor(t), conditioning.select(part)) for part in rows]
                )
                for t, x in zip(TIMESTEPS, self._noisy, strict=True)
            ]
        return torch.cat([output.flatten(1) for output in outputs], 1)

    def _left(self, predicted: Float[Tensor, "n numbers"]) -> Float[Tensor, " n"]:
        """Return the part of the concept's effect on the prediction that is left, along that effect."""
        effect = self._before - self._without
        return ((predicted - self._without) * effect).sum(1) / effect.square().sum(1)

    def _moved(self, predicted: Float[Tensor, "n numbers"]) -> Float[Tensor, " n"]:
        return (predicted - self._before).norm(dim=1) / (self._before - self._without).norm(dim=1)

    def _where(self, role: str, held_out: bool | None = None) -> Bool[Tensor, " n"]:
        return torch.tensor([probe.role == role and held_out in (None, probe.held_out) for probe in self._probes])

    def _seen(self, probes: Sequence[PlannedImage], on_progress: OnProgress | None) -> list[bool]:
        prompts, seeds = [probe.prompt for probe in probes], [probe.seed for probe in probes]
        images = sample(self._pipe, prompts, seeds, self._sampler, on_progress=on_progress)
        reading = self._oracle.read(images)
        return [bool(reading.sees(probe.name)[i]) for i, probe in enumerate(probes)]

    def _ideal(self) -> tuple[Float[Tensor, "n tokens dim"], Tensor]:
        """Return the states of the prompts without their concepts, place by place, and the number of each place.

        Words are counted back from the end of text, states after it on from there. The name has no counterpart: it
        becomes the first end of text of the empty prompt.
        """
        states, blanks = self._states, self._blanks
        empty = self._backbone.encode([""])
        ideal, places = states.states.clone(), torch.zeros(states.ids.shape, dtype=torch.long)
        last = states.ids.shape[1] - 1
        for row, probe in enumerate(self._probes):
            if probe.role != "removed":
                continue
            names = self._concepts[CONCEPTS.index(probe.name)].names
            words = [i for name in names if name in probe.prompt for i in states.word_positions(row, name)]
            end, blank_end = int(states.eot[row]), int(blanks.eot[row])
            for i in range(min(words, default=end), last + 1):
                in_name = i in words
                places[row, i] = 1 if in_name else 2 + (i >= end) + (i > end)
                other = max(0, min(blank_end + i - end, last))
                ideal[row, i] = empty.states[0, int(empty.eot[0])] if in_name else blanks.states[row, other]
        return ideal, places


if __name__ == "__main__":
    main()
