"""Size of an effect between two shares."""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

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
