"""FID, Frechet Inception distance (Heusel et al., NeurIPS 2017, arXiv:1706.08500)."""

from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError
from erasure.registry import Exactness

from ..features.image_features import Extractor, Features, as_rows
from ..images.conversion import Images
from ..stats.scores import Setup
from .base import Feed, Metric
from .distances import SetDistance
from .kid import Kid

ENOUGH = 5_000
"""Number of images below which the bias of its covariances dominates FID; the unbiased KID is then given with it."""
WIDEST = 256
"""Largest feature width with a bootstrap interval: it takes 10 s there, and an hour for Inception's 2,048."""


@dataclass
class Moments:
    """Mean and covariance of rows that come in batches; memory grows with dim^2, not with their number.

    Attributes:
        n: Number of rows so far.
        mean: Mean of the rows, float64.
        scatter: Sum of (row - mean)(row - mean)^T, float64.
    """

    n: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, rows: Float[Tensor, "n dim"]) -> None:
        """Add rows by the pairwise update of Chan, Golub and LeVeque (1979), which avoids differences of large sums."""
        if not len(rows):
            return
        rows = rows.double()
        mean = rows.mean(0)
        scatter = (rows - mean).T @ (rows - mean)
        if not self.n:
            self.n, self.mean, self.scatter = len(rows), mean, scatter
            return
        total, shift = self.n + len(rows), mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.n = total

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """The unbiased covariance; needs two rows."""
        return self.scatter / (self.n - 1)


def frechet_distance(
    mean_x: Float[Tensor, " dim"],
    covariance_x: Float[Tensor, "dim dim"],
    mean_y: Float[Tensor, " dim"],
    covariance_y: Float[Tensor, "dim dim"],
) -> float:
    """Return |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the squared Frechet distance of two Gaussians.

    The last trace is the sum of the singular values of S_x^(1/2) S_y^(1/2). Square roots of the eigenvalues of S_x S_y
    would amplify rounding of 1e-16 to 1e-8 in every direction without variance, and small sets have many of those.
    """
    cross = torch.linalg.svdvals(_root(covariance_x.double()) @ _root(covariance_y.double())).sum()
    shift = (mean_x.double() - mean_y.double()).square().sum()
    distance = shift + covariance_x.double().trace() + covariance_y.double().trace() - 2 * cross
    return max(0.0, float(distance))  # below 0 by rounding only


def fid(x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"]) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets of features.

    Raises:
        InputError: A set has fewer than two rows.
    """
    both = Moments(), Moments()
    for moments, rows in zip(both, (x, y), strict=True):
        moments.update(rows)
    return _distance(*both)


def bootstrap_error(
    x: Float[Tensor, "n dim"], y: Float[Tensor, "m dim"], *, resamples: int = 200, seed: int = 0
) -> float:
    """Return the bootstrap standard error of a Frechet distance, over the images of both sets.

    It estimates the variation over other sets of equal size, not the bias, which is larger in the draws than in the
    sets.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [frechet_distance(*_drawn(x.double(), generator), *_drawn(y.double(), generator)) for _ in range(resamples)]
    return float(torch.tensor(draws, dtype=torch.float64).std())


def _drawn(
    rows: Float[Tensor, "n dim"], generator: torch.Generator
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
    drawn = rows[torch.randint(len(rows), (len(rows),), generator=generator)]
    return drawn.mean(0), drawn.T.cov()


@dataclass(frozen=True, kw_only=True)
class FidScore(SetDistance):
    """FID with its KID, and the reasons that limit its use.

    Attributes:
        kid: KID of the same images, at most the first 5,000 of each set; None for large sets.
        no_interval: Reason for a missing interval; "" if there is one.
    """

    kid: SetDistance | None
    no_interval: str = ""

    @property
    def warning(self) -> str:
        """Reason against comparing the number; "" if there is none."""
        fewest = min(self.n, self.reference_n)
        if fewest >= ENOUGH:
            return ""
        return (
            f"a Fréchet distance over {fewest:,} images is biased upwards, the more the fewer they are; compare it"
            f" only at equal n, and read KID instead (below {ENOUGH:,})"
        )

    def as_json(self) -> dict[str, object]:
        more = {"warning": self.warning, "no_interval": self.no_interval, "kid": self.kid and self.kid.as_json()}
        return {**super().as_json(), **more}

    def __str__(self) -> str:
        return super().__str__() + (f"; KID {self.kid}; {self.warning}" if self.kid else "")


@dataclass(kw_only=True)
class Fid(Metric):
    """Streaming FID; keeps two means and covariances, and the first 5,000 features of each set.

    The features serve KID and, for small sets of narrow features, an interval: the value with 1.96 standard errors to
    both sides, not below 0.

    Attributes:
        extractor: Feature extractor; the published metric uses "inception".
        reference: Description of the reference set, for the protocol.
        seed: Seed of both bootstraps.
    """

    name: ClassVar[str] = "fid"
    source: ClassVar[str] = "arXiv:1706.08500"
    exactness: ClassVar[Exactness] = "published"
    feed: ClassVar[Feed] = "reference"

    extractor: Extractor
    reference: str = ""
    seed: int = 0
    _moments: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()), init=False, repr=False)
    _kid: Kid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._kid = Kid(extractor=self.extractor, reference=self.reference, seed=self.seed)

    def update(self, images: Images) -> "Fid":
        """Add images of the judged set."""
        return self.update_features(self.extractor(images))

    def update_reference(self, images: Images) -> "Fid":
        """Add images of the reference set."""
        return self.update_features(self.extractor(images), reference=True)

    def update_features(self, features: Features, *, reference: bool = False) -> "Fid":
        """Add features (n, dim) of the same extractor."""
        rows, moments = as_rows(features), self._moments[reference]
        if (room := ENOUGH - moments.n) > 0:
            self._kid.update_features(rows[:room], reference=reference)
        moments.update(rows)
        return self

    def again(self) -> "Fid":
        """Return a metric with this one's reference and no judged images, for another model."""
        other = replace(self)
        other._moments = Moments(), replace(self._moments[True])
        other._kid._features[True].extend(self._kid._features[True])
        return other

    def compute(self) -> FidScore:
        """Return the distance of all images so far.

        Raises:
            InputError: A set has fewer than two images.
        """
        judged, reference = self._moments
        value = _distance(judged, reference)
        error = None if self._no_interval else bootstrap_error(*self._kid.rows, seed=self.seed)
        half = NormalDist().inv_cdf(0.975) * (error or 0.0)
        return FidScore(
            value=value,
            n=judged.n,
            reference_n=reference.n,
            standard_error=error,
            interval=None if error is None else (max(0.0, value - half), value + half),
            unit="Fréchet distance",
            higher_is_better=False,
            setup=self.setup,
            kid=self.compute_kid() if min(judged.n, reference.n) < ENOUGH else None,
            no_interval=self._no_interval,
        )

    def compute_kid(self) -> SetDistance:
        """Return KID of at most the first 5,000 images of each set.

        Raises:
            InputError: A set has fewer than two images.
        """
        return self._kid.compute()

    @property
    def _no_interval(self) -> str:
        width = len(self._moments[0].mean)
        if width > WIDEST:
            return f"{width:,} features an image; drawing images anew is affordable up to {WIDEST}"
        if max(moments.n for moments in self._moments) > ENOUGH:
            return f"more images than the {ENOUGH:,} whose features are kept for drawing anew"
        return ""

    @property
    def setup(self) -> Setup:
        """Protocol of the metric."""
        return self.extractor.setup(self.name, reference=self.reference)


def _distance(x: Moments, y: Moments) -> float:
    for moments in (x, y):
        if moments.n < 2:
            raise InputError(f"fid: expected at least 2 images in each set, got {moments.n}. Give more images.")
    return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
