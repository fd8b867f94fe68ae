"""Quantiles of the beta distribution, exact intervals of shares, and Student's t.

scipy is not a dependency; these are the textbook's methods.
"""

import math
from functools import lru_cache

Number = float | int
_TINY = 1e-300


def beta_cdf(x: Number, a: Number, b: Number) -> float:
    """Return the regularised incomplete beta function I_x(a, b), the share of a beta distribution below x.

    By its continued fraction (Abramowitz and Stegun 26.5.8), evaluated by Lentz's method, on the side of the mean on
    which it converges fast.

    Args:
        x: In [0, 1].
        a: > 0.
        b: > 0.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_cdf(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ratio, factor = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    total = factor
    for m in range(1, 100_000):  # takes about sqrt(max(a, b)) turns
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            factor = 1 / _away_from_zero(1 + term * factor)
            ratio = _away_from_zero(1 + term / ratio)
            total *= factor * ratio
        if abs(factor * ratio - 1) < 1e-15:
            break
    return math.exp(log_front) * total / a


def beta_quantile(p: Number, a: Number, b: Number) -> float:
    """Return the x with `beta_cdf(x, a, b)` = p, by bisection.

    Args:
        p: In [0, 1].
        a: > 0.
        b: > 0.
    """
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return middle


@lru_cache(maxsize=4096)
def clopper_pearson(hits: int, n: int, confidence: Number = 0.95) -> tuple[float, float]:
    """Return the exact interval of a binomial share (Clopper and Pearson 1934, Biometrika 26:404).

    Its coverage is at least the nominal one for every share, also at confidences close to 1, where Wilson's falls
    short for shares near 0 and 1.

    Args:
        hits: Successes, 0 to n.
        n: Trials, > 0.
        confidence: Coverage in (0, 1).
    """
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else beta_quantile(tail, hits, n - hits + 1)
    high = 1.0 if hits == n else beta_quantile(1 - tail, hits + 1, n - hits)
    return low, high


@lru_cache(maxsize=4096)
def student_t(degrees: int, confidence: Number = 0.95) -> float:
    """Return the two-sided quantile t of Student's distribution.

    Args:
        degrees: Degrees of freedom, > 0.
        confidence: Share of the distribution within [-t, t], in (0, 1).
    """
    x = beta_quantile(1 - confidence, degrees / 2, 0.5)  # of degrees / (degrees + t^2)
    return math.sqrt(degrees * (1 - x) / x)


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
