"""FID, Frechet Inception distance (Heusel et al., NeurIPS 2017, arXiv:1706.08500)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError

from ..scores import Setup
from .distances import SetDistance
from .features import Extractor, Features, as_rows
from .images import Images
from .kid import Kid

ENOUGH = 5_000
"""Pictures below which FID is mostly the bias of its covariances: KID, which has none, is given with it."""


@dataclass
class Moments:
    """Mean and covariance of rows that come in batches; memory grows with dim^2, not with their number.

    Attributes:
        n: Rows so far.
        mean: Of the rows, float64.
        scatter: Sum of (row - mean)(row - mean)^T, float64.
    """

    n: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, rows: Float[Tensor, "n dim"]) -> None:
        """Add rows, by the pairwise update of Chan, Golub and LeVeque (1979): no difference of large sums."""
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

    The last trace is the sum of the singular values of S_x^(1/2) S_y^(1/2). Roots of the eigenvalues of S_x S_y would
    turn rounding of 1e-16 into 1e-8 in every direction without variance, of which small sets have many.
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


@dataclass(frozen=True, kw_only=True)
class FidScore(SetDistance):
    """FID with what a reader needs beside it.

    Attributes:
        kid: KID of the same pictures, at most the first 5,000 of each set; None where FID stands alone.
    """

    kid: SetDistance | None

    @property
    def warning(self) -> str:
        """Why the number must not be compared, in words; empty where it may be."""
        fewest = min(self.n, self.reference_n)
        if fewest >= ENOUGH:
            return ""
        return (
            f"FID over {fewest:,} pictures is biased upwards, the more the fewer they are; compare it only at equal n,"
            f" and read KID instead (below {ENOUGH:,})."
        )

    def as_json(self) -> dict[str, object]:
        return {**super().as_json(), "warning": self.warning, "kid": self.kid and self.kid.as_json()}

    def __str__(self) -> str:
        return super().__str__() + (f"; KID {self.kid}. {self.warning}" if self.kid else "")


@dataclass(kw_only=True)
class Fid:
    """Streaming FID; keeps two means and covariances, and the first 5,000 features of each set for KID.

    Attributes:
        extractor: Pictures to features; the published number is "inception".
        reference: What the pictures are compared with, in words, for the protocol.
        seed: Of KID's bootstrap.
    """

    name: ClassVar[str] = "fid"

    extractor: Extractor
    reference: str = ""
    seed: int = 0
    _moments: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()), init=False, repr=False)
    _kid: Kid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._kid = Kid(extractor=self.extractor, reference=self.reference, seed=self.seed)

    def update(self, images: Images) -> "Fid":
        """Add pictures of the set that is judged."""
        return self.update_features(self.extractor(images))

    def update_reference(self, images: Images) -> "Fid":
        """Add pictures of the set that it is compared with."""
        return self.update_features(self.extractor(images), reference=True)

    def update_features(self, features: Features, *, reference: bool = False) -> "Fid":
        """Add features (n, dim) that the extractor gave before."""
        rows, moments = as_rows(features), self._moments[reference]
        if (room := ENOUGH - moments.n) > 0:
            self._kid.update_features(rows[:room], reference=reference)
        moments.update(rows)
        return self

    def compute(self) -> FidScore:
        """Return the distance of all pictures so far.

        Raises:
            InputError: A set has fewer than two pictures.
        """
        judged, reference = self._moments
        return FidScore(
            value=_distance(judged, reference),
            n=judged.n,
            reference_n=reference.n,
            standard_error=None,
            unit="Fréchet distance",
            higher_is_better=False,
            setup=self.setup,
            kid=self._kid.compute() if min(judged.n, reference.n) < ENOUGH else None,
        )

    @property
    def setup(self) -> Setup:
        """What is measured."""
        return self.extractor.setup(self.name, reference=self.reference)


def _distance(x: Moments, y: Moments) -> float:
    for moments in (x, y):
        if moments.n < 2:
            raise InputError(f"fid: expected at least 2 pictures in each set, got {moments.n}. Give more pictures.")
    return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
