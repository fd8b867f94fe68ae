"""Residue: the share of what a probe finds in the original that it still finds in an erased model.

    rho = (erased - floor) / (original - floor)

0 is a model that was never taught the concept, 1 the original. Each argument is the mean of values of one row, paired
by prompt and seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from erasure.errors import InputError

RESAMPLES = 4000
LEAST_SPAN = 0.2
"""Smallest difference of the original's rate and the floor's at which a residue of rates is computed: below it the
quotient says more of the noise than of the model."""


@dataclass(frozen=True, kw_only=True)
class Residue:
    """The residue at one dose, with its interval.

    Attributes:
        value: rho.
        low: Lower end of the interval.
        high: Upper end.
        confidence: Coverage of the interval, in (0, 1).
    """

    value: float
    low: float
    high: float
    confidence: float

    def as_json(self) -> dict[str, float]:
        """Return the fields as plain data."""
        return {"value": self.value, "low": self.low, "high": self.high, "confidence": self.confidence}


def residue(
    erased: Sequence[float],
    original: Sequence[float],
    floor: Sequence[float] | float,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Residue | None:
    """Return the residue of values of three rows; None where the original does not stand out from the floor.

    The interval is a percentile interval. Rates, whose values are 0 or 1, are drawn from their Jeffreys posteriors
    Beta(hits + 1/2, misses + 1/2): resampling 16 misses would give 16 misses and an interval without width. Other
    values are resampled together (paired bootstrap), as rows share prompts, seeds and noise.

    Args:
        erased: Values of the erased model.
        original: Values of the original, for the same examples.
        floor: Values of the model never taught the concept, or of its stand-in; or a value that is known.
        confidence: Coverage of the interval, in (0, 1).
        seed: Seed of the draws.

    Raises:
        InputError: A row has no values.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in (erased, original)]
    rows.append(np.atleast_1d(np.asarray(floor, dtype=np.float64)))
    if any(row.size == 0 for row in rows):
        raise InputError("residue: expected values of each row, got an empty one. Leave the dose out.")
    rng = np.random.default_rng(seed)
    known = isinstance(floor, (int, float))
    rates = all(np.isin(row, (0.0, 1.0)).all() for row in (rows[:2] if known else rows))
    drawn = _posteriors(rows[: 2 if known else 3], rng) if rates else _resampled(rows, rng)
    drawn += [rows[2]] * (3 - len(drawn))  # a known floor has no spread
    means = [float(row.mean()) for row in rows]
    span, spans = means[1] - means[2], drawn[1] - drawn[2]
    if rates and span < LEAST_SPAN:
        return None
    if not rates and (span == 0 or np.quantile(spans * math.copysign(1, span), 0.025) <= 0):
        return None
    value = (means[0] - means[2]) / span
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (drawn[0] - drawn[2]) / np.where(np.abs(spans) < 0.02 * abs(span), 0.02 * span, spans)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Residue(value=value, low=min(float(low), value), high=max(float(high), value), confidence=confidence)


def half_dose(doses: Sequence[float], erased: Sequence[float], original: Sequence[float]) -> float | None:
    """Return the dose at which half of the original's rate is back; None if no dose brings that.

    The share of the original's rate is interpolated between neighbouring doses, in the logarithm of the dose where all
    are positive. A dose at which the original itself is below `LEAST_SPAN` brings nothing back: there the probe has
    destroyed the model, and half of little is no recovery.

    Args:
        doses: Doses, the weakest first; rising or falling.
        erased: Rate of the erased model at each.
        original: Rate of the original at each.
    """
    shares = [e / o if o >= LEAST_SPAN else 0.0 for e, o in zip(erased, original, strict=True)]
    places = [math.log(dose) for dose in doses] if min(doses) > 0 else list(doses)
    for i, share in enumerate(shares):
        if share < 0.5:
            continue
        if i == 0:
            return float(doses[0])
        part = (0.5 - shares[i - 1]) / (share - shares[i - 1])
        place = places[i - 1] + part * (places[i] - places[i - 1])
        return math.exp(place) if min(doses) > 0 else place
    return None


def _posteriors(rows: Sequence[Float[np.ndarray, " _"]], rng: np.random.Generator) -> list[Float[np.ndarray, " _"]]:
    return [rng.beta(row.sum() + 0.5, row.size - row.sum() + 0.5, RESAMPLES) for row in rows]


def _resampled(rows: Sequence[Float[np.ndarray, " _"]], rng: np.random.Generator) -> list[Float[np.ndarray, " _"]]:
    """Return means of resampled rows: rows of one length are resampled together, a known value stays."""
    chosen = {size: rng.integers(size, size=(RESAMPLES, size)) for size in dict.fromkeys(row.size for row in rows)}
    return [row[chosen[row.size]].mean(axis=1) for row in rows]
