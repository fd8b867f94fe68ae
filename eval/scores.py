"""Numbers that carry what is needed to believe them: a count, an interval, a unit and a direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float


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
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share of n pictures, with its 95 % Wilson interval.

    Attributes:
        hits: Pictures of which the claim holds, 0 to n.
        n: Pictures looked at, > 0: a share of nothing is left out rather than made up.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if self.n <= 0 or not 0 <= self.hits <= self.n:
            raise ValueError(f"Rate: expected 0 <= hits <= n and n > 0, got {self.hits!r} of {self.n!r}.")

    @classmethod
    def of(cls, claims: Bool[np.ndarray, " n"]) -> "Rate":
        """Count the pictures of which a claim holds."""
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
        """Give value, count and interval as plain data."""
        low, high = self.interval
        return {"value": self.value, "hits": self.hits, "n": self.n, "interval": [low, high]}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} [{low:.2f}, {high:.2f}]"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over pictures with its standard error.

    Attributes:
        value: The mean.
        n: Pictures it is a mean of.
        standard_error: Of the mean, in the same unit; None for a single picture, which has none.
        unit: What it counts, e.g. "cosine distance".
        higher_is_better: The direction.
        per_image: The value of each picture, in the order measured.
    """

    value: float
    n: int
    standard_error: float | None
    unit: str
    higher_is_better: bool
    per_image: tuple[float, ...] = ()

    @classmethod
    def mean(cls, values: Sequence[float] | Float[np.ndarray, " n"], *, unit: str, higher_is_better: bool) -> "Score":
        """Average one value a picture.

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
        )

    def as_json(self) -> dict[str, object]:
        """Give the summary, without the values per picture, as plain data."""
        return {
            "value": self.value,
            "n": self.n,
            "standard_error": self.standard_error,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.3f}")


def kept_rate(before: Bool[np.ndarray, " n"], after: Bool[np.ndarray, " n"]) -> Rate | None:
    """Return, of the pictures of which a claim held before, the share of which it still holds.

    Both arrays are of the same prompts and seeds. Pictures that the original model itself got wrong are left out: one
    that the edit happens to mend cannot make up for one that it broke, so this is at most the ratio of the two plain
    shares. None when the claim never held before.
    """
    held = before.astype(bool)
    return Rate.of(after[held].astype(bool)) if held.any() else None


def cosine_distances(before: Float[np.ndarray, "n dim"], after: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, " n"]:
    """Return 1 - cosine of each pair of feature rows: 0 for equal pictures, at most 2."""
    a, b = before.astype(np.float64), after.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)
    # Equal rows are at distance 0 to the last bit, rows of zeros (which have no direction) among them.
    return np.where((a == b).all(axis=1), 0.0, np.clip(1.0 - cosine, 0.0, 2.0))
