"""Rates of removals in images of the tiny world: efficacy in held-out phrasings, near, far, and prompts of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image

from erasure.errors import InputError
from erasure.eval.benchmarks import Item
from erasure.eval.benchmarks.tinyworld import TinyWorld
from erasure.eval.protocols.plans import PlannedImage, known_images, pairs_of, plan_known
from erasure.eval.protocols.quick import KeptResult, measure
from erasure.eval.stats.aggregates import joint_rate
from erasure.eval.stats.allocation import evenly
from erasure.eval.stats.scores import Rate
from erasure.judge import Judge, shows_each
from erasure.profile import ModelProfile
from erasure.runs.schema import MeasureSettings

RATES = ("held_out", "near", "far")
_DRAWN = 10  # prompts for one in a held-out phrasing
_ITEMS = 400  # of the benchmark, of which about 60 ask for a removed and a kept concept


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Images that are asked of a model with removals.

    Attributes:
        single: Images of one concept each: of the removed ones in held-out phrasings, of near and of far ones.
        joint: Items that ask for a removed and a kept concept in one image.
        kept: Names of everything that is not removed.
    """

    single: Sequence[PlannedImage]
    joint: Sequence[Item] = ()
    kept: Sequence[str] = ()

    @classmethod
    def of(cls, profile: ModelProfile, removed: Sequence[str], images: int, seed: int, *, joint: int = 0) -> "Probes":
        """Return the probes of some removals, the same whatever method removes.

        Args:
            profile: Profile of the tiny world.
            removed: Targets.
            images: Images of the removed concepts in all, of the near ones and of the far ones, > 0.
            seed: Seed of the prompts and the noise.
            joint: Largest number of joint items.

        Raises:
            InputError: There are fewer images than targets.
        """
        each = images // len(removed)
        if not each:
            raise InputError(f"--images: expected at least one for each of {len(removed)} targets, got {images}.")
        settings = MeasureSettings(per_concept=1, near=images, far=images, seed=seed)
        plan = plan_known(profile, removed, settings)
        removals = [
            probe
            for name in removed
            for probe in [
                image for image in known_images(profile, name, "removed", _DRAWN * each, settings, ()) if image.held_out
            ][:each]
        ]
        both = TinyWorld(removed=tuple(removed), total=_ITEMS, seed=seed) if joint else None
        items = [item for item in both.items if item.unwanted and item.retained] if both else []
        kept = [probe for probe in plan.probes if probe.role != "removed"]
        names = tuple(name for name in profile.concepts if name not in removed)
        return cls(single=(*removals, *kept), joint=evenly(items, joint), kept=names)

    @property
    def pairs(self) -> list[tuple[str, int]]:
        """Prompt and seed of each image."""
        return [*pairs_of(self.single), *((item.prompt, item.seed) for item in self.joint)]

    def rates(self, judge: Judge, before: Sequence[Image], after: Sequence[Image]) -> dict[str, Any]:
        """Return the rates of the images of an edited model beside the original's.

        Args:
            judge: Judge of the images.
            before: Images of the original, one a pair.
            after: Images of the edited model, likewise.
        """
        n, both = len(self.single), {"joint": after, "joint_before": before}
        result = measure(self.single, judge, before[:n], after[:n])
        efficacies = {name: each.efficacy for name, each in result.removed.items()}
        worst = min(efficacies, key=lambda name: efficacies[name].value)
        return {
            "held_out": together(list(efficacies.values())).as_json(),
            "before": together([each.before for each in result.removed.values()]).as_json(),
            "worst": {"concept": worst, **efficacies[worst].as_json()},
            "near": _retention(result.near),
            "far": _retention(result.far),
            **({name: self._joint(judge, images[n:]) for name, images in both.items()} if self.joint else {}),
        }

    def beside(self, judge: Judge, before: Sequence[Image], after: Sequence[Image]) -> dict[str, object] | None:
        """Return the share of what the original shows beside the asked concept that the edited model shows as well.

        Args:
            judge: Judge of the images.
            before: Images of the original, one a pair.
            after: Images of the edited model, likewise.
        """
        asked_for = [(i, probe.name) for i, probe in enumerate(self.single) if probe.role != "removed"]
        # One model's images at a time: a judge keeps its last reading.
        rows = [images[: len(self.single)] for images in (before, after)]
        shown_before, shown_after = ({name: judge.shows(row, name) for name in self.kept} for row in rows)
        hits = n = 0
        for name in self.kept:
            seen = [shown_after[name][i] for i, other in asked_for if name != other and shown_before[name][i]]
            hits, n = hits + sum(seen), n + len(seen)
        return Rate(hits=hits, n=n).as_json() if n else None

    def _joint(self, judge: Judge, images: Sequence[Image]) -> dict[str, object]:
        unwanted = np.array(shows_each(judge, images, [item.unwanted for item in self.joint]), dtype=bool)
        retained = np.array(shows_each(judge, images, [item.retained for item in self.joint]), dtype=bool)
        return joint_rate(~unwanted, retained).as_json()


def _retention(kept: KeptResult | None) -> dict[str, object] | None:
    return None if kept is None or kept.retention is None else kept.retention.as_json()


def together(rates: Sequence[Rate]) -> Rate:
    """Return the rate over all images of some rates."""
    return Rate(hits=sum(rate.hits for rate in rates), n=sum(rate.n for rate in rates))


def pooled(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, object] | None:
    """Return the rate of some rows together, as plain data; None if none of them has it."""
    rates = [Rate(hits=row[name]["hits"], n=row[name]["n"]) for row in rows if row.get(name) is not None]
    return together(rates).as_json() if rates else None


def merit(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the harmonic mean of held-out efficacy, near and far over some rows: 0 if one of them is 0 or missing."""
    values = [0.0 if (rate := pooled(rows, name)) is None else float(str(rate["value"])) for name in RATES]
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0
