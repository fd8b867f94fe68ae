"""Scores of a personalised model: how like the instance, how well composed, and what became of the class.

Images of the model before and after are made for the same prompts and seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from erasure.judge import shows_each

from ...metrics.caption_match import UNIT as CAPTION_UNIT
from ...stats.scores import Rate, Score, Setup, kept_rate
from .metrics import InstanceMetrics
from .prompts import KEPT, Group, InstanceRequest

# Groups differ in size: each array has a length of its own.
Values = Float[np.ndarray, " _"]
Flags = Bool[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True)
class InstanceScores:
    """Scores of one state of the model.

    Attributes:
        likeness: To the instance's images: of images of it alone, composed, and of plain images of its class.
        fits: Agreement of composed images by metric: with the whole prompt, and the least over the whole and its parts.
        composed: Share of composed images that show the class and all parts; None from a judge that cannot tell.
        retention: By group, of the images that showed what was asked for before, the share that still do.
        moved: By group, how well images fit their prompts, less the original's for the same seeds, by metric.
    """

    likeness: Mapping[str, Mapping[str, Score]]
    fits: Mapping[str, Mapping[str, Score]]
    composed: Rate | None
    retention: Mapping[str, Rate | None]
    moved: Mapping[str, Mapping[str, Score]]

    def as_json(self) -> dict[str, Any]:
        """Give the scores as plain data."""

        def nested(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
            return {key: {name: score.as_json() for name, score in inner.items()} for key, inner in scores.items()}

        return {
            "likeness": nested(self.likeness),
            "fits": nested(self.fits),
            "composed": self.composed and self.composed.as_json(),
            "retention": {group: rate and rate.as_json() for group, rate in self.retention.items()},
            "moved": nested(self.moved),
        }


@dataclass(frozen=True, kw_only=True)
class InstanceReadings:
    """Readings of one state's images, by group.

    Attributes:
        likeness: To the instance's images, by measure: alone, composed, and of the plain class.
        parts: Agreement of composed images, by metric: with the whole prompt, then with each part.
        composed: Whether each composed image shows the class and all parts; None from a judge that cannot tell.
        seen: Whether each image of a kept concept shows it; None likewise.
        fits: Agreement of each image of a kept concept with its prompt, by metric.
    """

    likeness: Mapping[str, Mapping[str, Values]]
    parts: Mapping[str, Sequence[Values]]
    composed: Flags | None
    seen: Mapping[str, Flags | None]
    fits: Mapping[str, Mapping[str, Values]]


def read_instance(
    requests: Sequence[InstanceRequest], class_word: str, metrics: InstanceMetrics, images: Sequence[Image.Image]
) -> InstanceReadings:
    """Read the images of one state, each once by each measure.

    Args:
        requests: Requests of the images.
        class_word: Class of the instance, because judges do not know its new word.
        metrics: Metrics of the instance.
        images: Images in the order of the requests.
    """
    rows = {group: [i for i, request in enumerate(requests) if request.group == group] for group in get_args(Group)}

    def of(group: str) -> tuple[list[InstanceRequest], list[Image.Image]]:
        return [requests[i] for i in rows[group]], [images[i] for i in rows[group]]

    likeness: dict[str, dict[str, Float[np.ndarray, " n"]]] = {}
    for group in ("alone", "composed", "class"):
        for name, values in metrics.likeness(of(group)[1]).items():
            likeness.setdefault(name, {})[group] = values
    company, shown = of("composed")
    kept = {group: of(group) for group in KEPT if rows[group]}
    return InstanceReadings(
        likeness=likeness,
        parts=_parts(company, class_word, metrics, shown),
        composed=_composed(company, metrics, shown),
        seen={
            group: _seen(metrics, images, [request.name for request in some]) for group, (some, images) in kept.items()
        },
        fits={
            group: metrics.fits(images, [request.filled(class_word) for request in some])
            for group, (some, images) in kept.items()
        },
    )


def instance_scores(metrics: InstanceMetrics, before: InstanceReadings, after: InstanceReadings) -> InstanceScores:
    """Score one state beside the original.

    Args:
        metrics: Metrics of the instance.
        before: Readings of the original's images.
        after: Readings of the state's images, for the same requests.
    """
    setups = metrics.setups
    return InstanceScores(
        likeness={
            name: {group: _mean(values, setups[name]) for group, values in groups.items()}
            for name, groups in after.likeness.items()
        },
        fits={
            name: {"whole": _mean(parts[0], setups[name]), "least": _mean(np.min(parts, 0), setups[name])}
            for name, parts in after.parts.items()
        },
        composed=None if after.composed is None else Rate.of(after.composed),
        retention={group: _kept(before.seen.get(group), after.seen.get(group)) for group in KEPT},
        moved={
            group: {name: _mean(values - before.fits[group][name], setups[name]) for name, values in fits.items()}
            for group, fits in after.fits.items()
        },
    )


def _kept(before: Bool[np.ndarray, " n"] | None, after: Bool[np.ndarray, " n"] | None) -> Rate | None:
    return None if before is None or after is None else kept_rate(before, after)


def _mean(values: Float[np.ndarray, " n"], setup: Setup) -> Score:
    unit = {"caption_match": CAPTION_UNIT, "clip_score": "100 x cosine", "blip2_itm": "probability"}
    return Score.mean(values, unit=unit.get(setup.metric, "cosine"), higher_is_better=True, setup=setup)


def _parts(
    company: Sequence[InstanceRequest], class_word: str, metrics: InstanceMetrics, images: Sequence[Image.Image]
) -> dict[str, list[Float[np.ndarray, " n"]]]:
    by_part: dict[str, list[Float[np.ndarray, " n"]]] = {}
    texts = [request.texts(class_word) for request in company]
    for part in range(max(map(len, texts), default=0)):
        for name, values in metrics.fits(images, [each[min(part, len(each) - 1)] for each in texts]).items():
            by_part.setdefault(name, []).append(values)
    return by_part


def _composed(
    company: Sequence[InstanceRequest], metrics: InstanceMetrics, images: Sequence[Image.Image]
) -> Bool[np.ndarray, " n"] | None:
    seen = _seen(metrics, images, [request.name for request in company]) if company else None
    if seen is None:
        return None
    for part in range(max(len(request.parts) for request in company)):
        also = _seen(metrics, images, [request.parts[min(part, len(request.parts) - 1)] for request in company])
        seen = seen & also if also is not None else seen
    return seen


def _seen(
    metrics: InstanceMetrics, images: Sequence[Image.Image], names: Sequence[str]
) -> Bool[np.ndarray, " n"] | None:
    """Return for each image True if it shows the concept named for it; None without a judge."""
    return None if metrics.judge is None else np.array(shows_each(metrics.judge, images, names), dtype=bool)
