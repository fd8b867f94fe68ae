"""Paired tests of two models on the same prompts and seeds.

Pairing removes the variance of prompt and noise, which both models share, so the interval of a difference is much
narrower than those of the two means. The images are treated as independent draws; images of one prompt are correlated,
and claims about unmeasured prompts need a wider interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from erasure.errors import InputError

from .scores import Number

# Resampled indices held at once: 8 MiB whatever the number of images.
_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of two means over the same images.

    Attributes:
        value: Mean of after - before.
        n: Pairs.
        low: Lower end of the interval.
        high: Its upper end.
        confidence: Its coverage, in (0, 1).
    """

    value: float
    n: int
    low: float
    high: float
    confidence: float

    def as_json(self) -> dict[str, object]:
        """Return the fields as plain data."""
        return {
            "value": self.value,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
        }

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test of two rates over the same images.

    Attributes:
        lost: Number of images for which the claim held before and does not after.
        gained: Number of images for which the claim holds after and did not before.
        n: Number of all images.
        p_value: Two-sided probability of a split at least as uneven if both directions were equally likely.
    """

    lost: int
    gained: int
    n: int
    p_value: float

    def as_json(self) -> dict[str, object]:
        """Return the fields as plain data."""
        return {"lost": self.lost, "gained": self.gained, "n": self.n, "p_value": self.p_value}


def paired_bootstrap(
    before: Sequence[Number] | Float[np.ndarray, " before"],
    after: Sequence[Number] | Float[np.ndarray, " after"],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Return mean(after - before) with its percentile bootstrap interval (Efron 1979, Ann. Statist. 7:1).

    Pairs are drawn with replacement, each with both of its values. Below about 20 pairs the interval is somewhat too
    narrow, as bootstrap intervals are.

    Args:
        before: Values of one model, one an image.
        after: Values of the other model, for the same prompts and seeds in the same order.
        confidence: Coverage in (0, 1).
        resamples: Number of draws of n pairs, >= 100.
        seed: Seed of the draws; equal arguments give equal intervals.

    Raises:
        InputError: There are no pairs, the lengths differ, a value is not finite, or a setting is out of range.
    """
    one, other = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if one.shape != other.shape or one.size == 0:
        raise InputError(
            f"paired_bootstrap: expected pairs of values, got {one.size} before and {other.size} after."
            " Give both models' values for the same prompts and seeds."
        )
    if not 0 < confidence < 1 or resamples < 100:
        raise InputError(
            f"paired_bootstrap: expected confidence in (0, 1) and at least 100 resamples, got {confidence!r} and"
            f" {resamples!r}."
        )
    for values in (one, other):
        if not np.isfinite(values).all():
            raise InputError(
                f"paired_bootstrap: expected finite values, got {float(values[~np.isfinite(values)][0])!r}."
                " Leave out images without a value, in both."
            )
    difference = other - one
    n, rng = difference.size, np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // n)
    means = np.concatenate(
        [
            difference[rng.integers(n, size=(min(rows, resamples - start), n))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Difference(value=float(difference.mean()), n=n, low=float(low), high=float(high), confidence=confidence)


def mcnemar(before: Bool[np.ndarray, " before"], after: Bool[np.ndarray, " after"]) -> McNemar:
    """Test that a claim holds equally often for two models' images (McNemar 1947, Psychometrika 12:153).

    Only the discordant pairs count. The test is the exact binomial one whatever their number: under equal rates the
    smaller of `lost` and `gained` is a draw of lost + gained fair coins, and the chi-squared approximation that is
    used for many pairs is not needed. Without discordant pairs p is 1.

    Args:
        before: Claims about the images of one model, one an image.
        after: Claims about the other model's images, for the same prompts and seeds in the same order.

    Raises:
        InputError: There are no pairs, or the lengths differ.
    """
    if len(before) != len(after) or len(before) == 0:
        raise InputError(
            f"mcnemar: expected pairs of claims, got {len(before)} before and {len(after)} after."
            " Give both models' claims for the same prompts and seeds."
        )
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    discordant = lost + gained
    term = tail = 1  # comb(discordant, k), each from the last: thousands of pairs take no time
    for k in range(min(lost, gained)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return McNemar(lost=lost, gained=gained, n=len(before), p_value=min(1.0, 2 * tail / 2**discordant))
