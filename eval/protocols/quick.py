"""The quick measure: after a removal, is the target gone and is the rest still there?

It compares images of the edited model with images of the original for the same prompts and seeds, as a judge reads
them: the oracle on the tiny world, CLIP elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL.Image import Image

from erasure.arguments import checks_arguments
from erasure.judge import Judge, shows_each

from ..stats.scores import Rate, Score, cosine_distances, kept_rate
from .plans import PlannedImage, Role


@dataclass(frozen=True, kw_only=True)
class RemovedResult:
    """Measure of one removed concept.

    Attributes:
        efficacy: Share of images, for prompts that ask for it, in which the judge does not see it.
        before: The same share of the original model, which is what efficacy starts from.
        held_out: Efficacy for prompts in phrasings that no list of an eraser may hold; None without one.
    """

    efficacy: Rate
    before: Rate
    held_out: Rate | None


@dataclass(frozen=True, kw_only=True)
class KeptResult:
    """Measure of a group of kept concepts.

    Attributes:
        retention: Share of the original's images with the concept for which the edited model's image (same prompt and
            seed) shows it too; None if the original never shows it.
        after: Share of the edited model's images that show their concept.
        before: Share of the original's images that show their concept.
        distance: Distance of each image from the original's, in the judge's features.
        names: Retention of each concept.
        accuracy: Share of images that show each concept, of the original and of the edited model.
    """

    retention: Rate | None
    after: Rate
    before: Rate
    distance: Score
    names: Mapping[str, Rate | None]
    accuracy: Mapping[str, tuple[Rate, Rate]]


@dataclass(frozen=True, kw_only=True)
class QuickMeasure:
    """The quick measure of one state of a model.

    Attributes:
        removed: Each removed concept.
        near: The concepts most like them, None if there are none or none was asked for.
        far: Everything else, likewise.
        judge: Name of the judge.
        left_out: Concepts that were not asked for, with the reason.
    """

    removed: Mapping[str, RemovedResult]
    near: KeptResult | None
    far: KeptResult | None
    judge: str
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> str:
        """The removed concept of which most is left."""
        return min(self.removed, key=lambda name: self.removed[name].efficacy.value)

    @property
    def efficacy(self) -> Rate:
        """The lowest efficacy over all that was removed so far."""
        return self.removed[self.worst].efficacy

    @property
    def held_out(self) -> Rate | None:
        """The lowest efficacy in held-out phrasings over all that was removed so far; None if nothing was asked so."""
        rates = [result.held_out for result in self.removed.values() if result.held_out is not None]
        return min(rates, key=lambda rate: rate.value, default=None)

    def as_json(self) -> dict[str, Any]:
        """Give the measure as plain data: the headline numbers as numbers, their counts and intervals beside them."""
        groups = {"near": self.near, "far": self.far}
        return {
            "efficacy": self.efficacy.value,
            "held_out": self.held_out and self.held_out.as_json(),
            "retention": {
                role: None if kept is None or kept.retention is None else kept.retention.value
                for role, kept in groups.items()
            },
            "n": {
                "efficacy": self.efficacy.n,
                **{
                    role: 0 if kept is None or kept.retention is None else kept.retention.n
                    for role, kept in groups.items()
                },
            },
            "interval": {
                "efficacy": list(self.efficacy.interval),
                **{
                    role: None if kept is None or kept.retention is None else list(kept.retention.interval)
                    for role, kept in groups.items()
                },
            },
            "worst": self.worst,
            "removed": {
                name: {
                    "efficacy": result.efficacy.as_json(),
                    "before": result.before.as_json(),
                    "held_out": result.held_out and result.held_out.as_json(),
                }
                for name, result in self.removed.items()
            },
            "kept": {
                role: {
                    "retention": kept.retention and kept.retention.as_json(),
                    "after": kept.after.as_json(),
                    "before": kept.before.as_json(),
                    "distance": kept.distance.as_json(),
                    "names": {name: rate and rate.as_json() for name, rate in kept.names.items()},
                    "accuracy": {
                        name: {"before": first.value, "after": second.value}
                        for name, (first, second) in kept.accuracy.items()
                    },
                }
                for role, kept in groups.items()
                if kept is not None
            },
            "judge": self.judge,
            "left_out": dict(self.left_out),
        }


@checks_arguments
def measure(
    probes: Sequence[PlannedImage],
    judge: Judge,
    before: Sequence[Image],
    after: Sequence[Image],
    left_out: Mapping[str, str] | None = None,
) -> QuickMeasure:
    """Return rates and distances between two sets of images of the same probes.

    Args:
        probes: The probes.
        judge: Judge of the images.
        before: Images of the original, one a probe.
        after: Images of the edited model, likewise.
        left_out: Concepts without probes, with the reason.
    """
    concepts = [probe.name for probe in probes]
    names = np.array(concepts)
    roles = np.array([probe.role for probe in probes])
    held_out = np.array([probe.held_out for probe in probes])
    # One model's images at a time: a judge keeps its last reading.
    readings = [(np.array(shows_each(judge, row, concepts)), judge.features(row).numpy()) for row in (before, after)]
    (seen_before, features_before), (seen_after, features_after) = readings
    distances = cosine_distances(features_before, features_after)

    def kept(role: Role) -> KeptResult | None:
        here = roles == role
        if not here.any():
            return None
        rows_of = {name: here & (names == name) for name in dict.fromkeys(names[here].tolist())}
        return KeptResult(
            retention=kept_rate(seen_before[here], seen_after[here]),
            after=Rate.of(seen_after[here]),
            before=Rate.of(seen_before[here]),
            distance=Score.mean(distances[here], unit="cosine distance", higher_is_better=False),
            names={name: kept_rate(seen_before[rows], seen_after[rows]) for name, rows in rows_of.items()},
            accuracy={name: (Rate.of(seen_before[rows]), Rate.of(seen_after[rows])) for name, rows in rows_of.items()},
        )

    def removed(name: str) -> RemovedResult:
        here = (roles == "removed") & (names == name)
        unseen = here & held_out
        return RemovedResult(
            efficacy=Rate.of(~seen_after[here]),
            before=Rate.of(~seen_before[here]),
            held_out=Rate.of(~seen_after[unseen]) if unseen.any() else None,
        )

    result = {name: removed(name) for name in dict.fromkeys(names[roles == "removed"].tolist())}
    return QuickMeasure(
        removed=result, near=kept("near"), far=kept("far"), judge=judge.name, left_out=dict(left_out or {})
    )
