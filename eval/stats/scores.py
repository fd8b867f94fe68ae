"""Scores: numbers with a count, an interval, a unit, a direction and their protocol."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from erasure.errors import InputError, unknown_name

from .quantiles import Number, clopper_pearson, student_t

RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "100 x cosine": (-100.0, 100.0),
        "100 x cosine of texts": (-100.0, 100.0),
        "cosine": (-1.0, 1.0),
        "cosine distance": (0.0, 2.0),
        "Dice": (0.0, 1.0),
        "LPIPS": (0.0, math.inf),
        "oracle distance": (0.0, 4.0),
        "probability": (0.0, 1.0),
        "share": (0.0, 1.0),
        "share of attention": (0.0, 1.0),
        "soft IoU": (0.0, 1.0),
    }
)
"""Range of a mean by its unit; intervals are cut to it."""


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a binomial share (Wilson 1927, JASA 22:209).

    Unlike the normal interval it stays inside [0, 1] and is not empty at 0 of n and n of n, where an erasure that
    works ends up.

    Args:
        hits: Successes, 0 to n.
        n: Trials, > 0.
        confidence: Coverage in (0, 1).
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    # At the ends the two terms are equal, but for the last bits.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of n images, with its 95 % Wilson interval.

    Attributes:
        hits: Number of images for which the claim holds, 0 to n.
        n: Number of images, > 0.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0 or not 0 <= self.hits <= self.n:
            raise ValueError(f"Rate: expected 0 <= hits <= n and n > 0, got {self.hits!r} of {self.n!r}.")

    @classmethod
    def of(cls, claims: Bool[np.ndarray, " n"]) -> "Rate":
        """Return the rate of a claim, one decision an image."""
        return cls(hits=int(claims.sum()), n=len(claims))

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson(self.hits, self.n)

    def as_json(self) -> dict[str, object]:
        """Return value, count and interval as plain data."""
        low, high = self.interval
        return {"value": self.value, "hits": self.hits, "n": self.n, "interval": [low, high]}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Protocol of a score: everything that decides the number besides the judged model.

    "" and None mean that a field does not apply to the metric, not that it is unknown.

    Attributes:
        metric: Name of the metric: "clip_score".
        definition: Form of the metric, where there are several: "the least of 3, ...".
        library: Library that computes it, with its version: "open_clip 3.3.0".
        backbone: Weights of the network that reads the images: "ViT-B-32/openai".
        resize: Resizing of the images for that network: "bicubic, antialias, 224".
        reference: Images compared with: "the original model, same prompts and seeds".
        benchmark: Prompts and seeds, with their version: "tinyworld/1".
        sampler: Class of the scheduler: "DDIMScheduler".
        steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance.
        precision: Data type of the denoiser: "float32".
        original: Digest of the original model, for a score that compares with its images.
    """

    metric: str
    definition: str = ""
    library: str = ""
    backbone: str = ""
    resize: str = ""
    reference: str = ""
    benchmark: str = ""
    sampler: str = ""
    steps: int | None = None
    guidance_scale: Number | None = None
    precision: str = ""
    original: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Setup":
        """Return the setup whose `as_json` gave `data`.

        Raises:
            InputError: The metric is missing.
            UnknownNameError: A key is not a field of a setup.
        """
        known = [item.name for item in fields(cls)]
        for key in data:
            if key not in known:
                raise unknown_name("protocol field", key, known)
        if "metric" not in data:
            raise InputError(f"protocol: expected a metric, got {dict(data)!r}. Name what was computed.")
        return cls(**data)


def shared_setup(column: str, setups: Mapping[str, Setup | None]) -> Setup:
    """Return the protocol that all scores of a column share.

    Args:
        column: Heading of the column, for the error.
        setups: Protocol of each row's score, by the row's name.

    Raises:
        InputError: There are no rows, a row has no protocol, or two rows have different ones.
    """
    known = {row: setup for row, setup in setups.items() if setup is not None}
    if unknown := [row for row in setups if row not in known]:
        raise InputError(f"column {column!r}: expected a protocol for every score, got none for {unknown[0]!r}.")
    if not known:
        raise InputError(f"column {column!r}: expected at least one score, got none.")
    (first, one), *others = known.items()
    for row, other in others:
        differing = [
            f"{name} {getattr(one, name)!r} against {getattr(other, name)!r}"
            for name in (item.name for item in fields(Setup))
            if getattr(one, name) != getattr(other, name)
        ]
        if differing:
            raise InputError(
                f"column {column!r}: expected scores of one protocol, got {first!r} and {row!r} with"
                f" {'; '.join(differing)}. Measure them alike or give each a column."
            )
    return one


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number over images, with its count, interval, unit, direction and protocol.

    Attributes:
        value: Value, for most metrics the mean over the images.
        n: Number of images, > 0.
        standard_error: Standard error in the same unit; None if undefined, as for a single image.
        unit: Unit, such as "cosine distance".
        higher_is_better: Direction.
        per_image: Value of each of the n images, in the order measured; () for metrics of whole sets, such as FID.
        interval: 95 % interval, where a better one is known than the standard error gives.
        setup: Protocol; scores without one cannot be compared, see `shared_setup`.

    Raises:
        ValueError: There are no images, or the number of values differs from n.
    """

    value: float
    n: int
    standard_error: float | None
    unit: str
    higher_is_better: bool
    per_image: tuple[float, ...] = ()
    interval: tuple[float, float] | None = None
    setup: Setup | None = None

    def __post_init__(self) -> None:
        if self.n <= 0 or (self.per_image and len(self.per_image) != self.n):
            raise ValueError(f"Score: expected n > 0 and one value an image, got {len(self.per_image)} of {self.n!r}.")

    @classmethod
    def mean(
        cls,
        values: Sequence[Number] | Float[np.ndarray, " n"],
        *,
        unit: str,
        higher_is_better: bool,
        setup: Setup | None = None,
    ) -> "Score":
        """Return the mean of one value an image.

        Raises:
            ValueError: There are no values.
        """
        data = np.asarray(values, dtype=np.float64)
        if data.size == 0:
            raise ValueError("Score.mean: expected at least one value, got none.")
        error = float(data.std(ddof=1) / data.size**0.5) if data.size > 1 else None
        return cls(
            value=float(data.mean()),
            n=int(data.size),
            standard_error=error,
            unit=unit,
            higher_is_better=higher_is_better,
            per_image=tuple(data.tolist()),
            setup=setup,
        )

    @classmethod
    def share(
        cls, claims: Bool[np.ndarray, " n"], *, unit: str, higher_is_better: bool, setup: Setup | None = None
    ) -> "Score":
        """Return the share of images for which a claim holds, in [0, 1], with its Wilson interval.

        Raises:
            ValueError: There are no images.
        """
        rate = Rate.of(claims)
        return cls(
            value=rate.value,
            n=rate.n,
            standard_error=None,  # it would be 0 for shares of 0 and 1
            unit=unit,
            higher_is_better=higher_is_better,
            per_image=tuple(claims.astype(np.float64).tolist()),
            interval=rate.interval,
            setup=setup,
        )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """95 % interval: the score's own, else Student's, within the unit's range; None without either."""
        if self.interval is not None or self.standard_error is None or self.n < 2:
            return self.interval
        half = student_t(self.n - 1) * self.standard_error
        low, high = RANGES.get(self.unit, (-math.inf, math.inf))
        return max(low, self.value - half), min(high, self.value + half)

    def as_json(self) -> dict[str, object]:
        """Return the summary as plain data, without the values per image and the protocol."""
        low, high = self.bounds or (None, None)
        return {
            "value": self.value,
            "n": self.n,
            "standard_error": self.standard_error,
            "low": low,
            "high": high,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }

    def __str__(self) -> str:
        if self.interval is not None:
            value, low, high = written(self.value, *self.interval)
            return f"{value} [{low}, {high}]"
        if self.standard_error is None:
            return written(self.value)[0]
        return " ± ".join(written(self.value, self.standard_error))


@dataclass(frozen=True, kw_only=True)
class LeastShare(Score):
    """The lowest of the shares of several concepts.

    Attributes:
        concept: Concept with the lowest share.
    """

    concept: str

    @classmethod
    def of(cls, shares: Mapping[str, Score], setup: Setup) -> "LeastShare":
        """Return the lowest of k shares.

        The minimum of k shares is selected for being low, so its interval is corrected for the selection: each share
        has an exact interval at 1 - 0.05 / k (Bonferroni), which hold together in 95 % of draws, and the minimum lies
        between the least of the lower and the least of the upper ends. Wilson's intervals cover too little at so high
        a confidence (measured: 12 shares of 60 images in 92 % of draws).

        Args:
            shares: Share of each concept.
            setup: Protocol; k is added to it.

        Raises:
            ValueError: There are no shares.
        """
        concept, least = min(shares.items(), key=lambda named: named[1].value)
        confidence = 1 - 0.05 / len(shares)
        ends = [clopper_pearson(round(share.value * share.n), share.n, confidence) for share in shares.values()]
        return cls(
            value=least.value,
            n=least.n,
            standard_error=None,
            unit=least.unit,
            higher_is_better=least.higher_is_better,
            per_image=least.per_image,
            interval=(min(low for low, _ in ends), min(high for _, high in ends)),
            setup=replace(setup, definition=f"the least of {len(shares)}, exact interval at 1 - 0.05 / {len(shares)}"),
            concept=concept,
        )

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "concept": self.concept}


def written(*values: float) -> list[str]:
    """Return numbers of one quantity as text with equal decimals: three, or as many as give the largest two digits."""
    largest = max(map(abs, values))
    decimals = 3 if largest == 0 else min(max(3, 1 - math.floor(math.log10(largest))), 6)
    return [f"{value:.{decimals}f}" for value in values]


def kept_rate(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> Rate | None:
    """Return the retention of a claim: among the images for which it held before, the share for which it still does.

    Both arrays are for the same prompts and seeds. Images that the original model got wrong are left out, so an image
    that the edit improves does not offset one that it breaks; the value is at most the ratio of the two plain shares.
    None if the claim never held before.
    """
    held = before.astype(bool)
    return Rate.of(after[held].astype(bool)) if held.any() else None


def cosine_distances(before: Float[np.ndarray, "n dim"], after: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
    """Return 1 - cosine of each pair of feature rows: 0 for equal images, at most 2."""
    a, b = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    # Equal rows have distance 0 to the last bit, rows of zeros (which have no direction) included.
    return np.where((a == b).all(axis=1), 0.0, np.clip(1.0 - cosine, 0.0, 2.0))
