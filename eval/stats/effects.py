"""Sizes of effects: between two shares, and between two rows of values."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from erasure.errors import InputError

from .residue import posteriors, resampled
from .scores import Rate


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Hedges' g between two shares, with its interval.

    Attributes:
        value: g; below 0 the second share is smaller.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {"value": self.value, "interval": [self.low, self.high]}


def hedges_g(before: Rate, after: Rate, *, confidence: float = 0.95) -> Effect:
    """Return Hedges' g of two shares (Hedges 1981, J. Educ. Stat. 6:107).

        g = J (p_after - p_before) / s,  J = 1 - 3 / (4 (n1 + n2) - 9)
        var g = (n1 + n2) / (n1 n2) + g^2 / (2 (n1 + n2))

    s^2 is the pooled variance of the decisions, each share with half a hit and half a miss added: of two shares of 0
    or 1 the plain variance is 0. The interval is normal, and of independent samples: images of equal seeds agree more,
    so it is too wide rather than too narrow.

    Args:
        before: First share.
        after: Second share.
        confidence: Coverage of the interval, in (0, 1).
    """
    sizes = (before.n, after.n)
    total = sum(sizes)
    variances = [share * (1 - share) for share in ((rate.hits + 0.5) / (rate.n + 1) for rate in (before, after))]
    pooled = sum(n * variance for n, variance in zip(sizes, variances, strict=True)) / total
    correction = 1 - 3 / (4 * total - 9) if total > 2 else 1.0
    g = correction * (after.value - before.value) / pooled**0.5
    spread = (total / (sizes[0] * sizes[1]) + g**2 / (2 * total)) ** 0.5
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return Effect(value=g, low=g - reach, high=g + reach)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of the means of two rows, with its interval.

    Attributes:
        value: Second mean less the first.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return the fields as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


def difference(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Return the difference of two rows of values, of the same prompts and seeds.

    The interval is a percentile interval: of rates (values 0 and 1) from their Jeffreys posteriors, taken as
    independent; of other values from resampled pairs.

    Args:
        first: Values of the first row, such as the original's.
        second: Values of the second row, as many.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the draws.

    Raises:
        InputError: A row has no values.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in (first, second)]
    if any(row.size == 0 for row in rows):
        raise InputError("difference: expected values of both rows, got an empty one. Leave the dose out.")
    rng = np.random.default_rng(seed)
    rates = all(np.isin(row, (0.0, 1.0)).all() for row in rows)
    drawn = posteriors(rows, rng) if rates else resampled(rows, rng)
    value = float(rows[1].mean() - rows[0].mean())
    low, high = np.quantile(drawn[1] - drawn[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(value=value, low=min(float(low), value), high=max(float(high), value))
