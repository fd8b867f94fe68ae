"""FID: known distances, torchmetrics' number, equal sets, few pictures."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.errors import InputError
from erasure.eval.metrics.fid import ENOUGH, Fid, Moments, fid, frechet_distance
from erasure.eval.metrics.kid import kid

from .tiny_judges import mean_colour, pictures


def _rows(n: int, dim: int, seed: int = 0, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * spread + shift


def test_distance_of_two_gaussians_with_diagonal_covariances() -> None:
    # |m - m'|^2 + sum (s - s')^2 for deviations s.
    mean, other = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.0])
    deviations, others = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 2.0, 0.5])
    found = frechet_distance(mean, deviations.square().diag(), other, others.square().diag())
    assert found == pytest.approx(5 + 4 + 0 + 0.25)


def test_distance_of_two_gaussians_that_share_no_axes() -> None:
    # tr (S T)^(1/2) of two 2 x 2 matrices is sqrt(tr ST + 2 sqrt(det S det T)).
    s, t = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, -0.5], [-0.5, 3.0]])
    cross = float((s @ t).trace() + 2 * (s.det() * t.det()).sqrt()) ** 0.5
    zero = torch.zeros(2)
    assert frechet_distance(zero, s, zero, t) == pytest.approx(4 + 4 - 2 * cross)


@pytest.mark.parametrize("n", [3, 50, 500])  # fewer rows than dimensions, about as many, more
def test_equal_sets_are_at_no_distance(n: int) -> None:
    rows = _rows(n, 64, spread=30.0)
    assert fid(rows, rows.flip(0)) < 1e-8


def test_samples_of_two_gaussians_come_near_the_closed_form() -> None:
    found = fid(_rows(20_000, 4), _rows(20_000, 4, seed=1, shift=2.0, spread=3.0))
    assert found == pytest.approx(4 * 2.0**2 + 4 * (3.0 - 1.0) ** 2, rel=0.02)


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = _rows(200, 8, shift=0.5).double(), _rows(150, 8, seed=1, spread=2.0).double()
    net = torch.nn.Identity()
    net.num_features = 8  # pyright: ignore[reportAttributeAccessIssue]
    reference = FrechetInceptionDistance(feature=net)
    reference.update(x, real=True)
    reference.update(y, real=False)
    assert fid(x, y) == pytest.approx(float(reference.compute()), rel=1e-6)


def test_agrees_with_a_matrix_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="needs scipy")
    x, y = _rows(300, 6).double().numpy(), _rows(300, 6, seed=1, shift=1.0, spread=0.5).double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * linalg.sqrtm(s @ t).real)
    assert fid(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2), st.integers(0, 99))
def test_moments_in_batches_are_those_of_all_rows(sizes: list[int], seed: int) -> None:
    rows = _rows(sum(sizes), 5, seed=seed, shift=1e4).double()
    moments = Moments()
    for batch in rows.split(sizes):
        moments.update(batch)
    assert moments.n == len(rows)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.covariance, rows.T.cov(), rtol=1e-6, atol=1e-9)


def test_streaming_over_pictures_is_the_function_over_features() -> None:
    judged, reference, read = pictures(7), pictures(9, seed=1), mean_colour()
    metric = Fid(extractor=read, reference="drawings")
    metric.update(judged[:6]).update(judged[6:])  # the last batch is one picture
    metric.update_reference(reference[:4]).update_reference(reference[4:])
    score = metric.compute()
    assert score.value == pytest.approx(fid(read(judged), read(reference)))
    assert (score.n, score.reference_n) == (7, 9)
    assert score.setup is not None
    assert (score.setup.metric, score.setup.backbone, score.setup.reference) == ("fid", "mean colour", "drawings")


def test_few_pictures_come_with_a_warning_and_kid() -> None:
    x, y = _rows(60, 4), _rows(40, 4, seed=1)
    score = Fid(extractor=mean_colour()).update_features(x).update_features(y, reference=True).compute()
    assert score.kid is not None
    assert score.kid.value == pytest.approx(kid(x, y), abs=1e-9)
    assert "40 images" in score.warning
    text = str(score)
    assert "n = 60 against 40" in text
    assert "KID" in text
    assert score.warning in text
    assert score.as_json()["warning"] == score.warning


def test_the_interval_is_as_wide_as_the_distance_varies_over_other_pictures() -> None:
    # Of 40 pairs of sets the distances spread by the standard error that one pair alone gives, to within a third.
    drawn = torch.tensor([fid(_rows(300, 4, seed=at), _rows(300, 4, seed=100 + at, shift=0.5)) for at in range(40)])
    x, y = _rows(300, 4, seed=1_000), _rows(300, 4, seed=1_001, shift=0.5)
    score = Fid(extractor=mean_colour()).update_features(x).update_features(y, reference=True).compute()
    assert score.standard_error == pytest.approx(float(drawn.std()), rel=0.33)
    assert score.interval == pytest.approx(
        (score.value - 1.959964 * score.standard_error, score.value + 1.959964 * score.standard_error)
    )
    assert score == Fid(extractor=mean_colour()).update_features(x).update_features(y, reference=True).compute()
    same = Fid(extractor=mean_colour()).update_features(x).update_features(x, reference=True).compute()
    assert same.interval is not None
    assert same.interval[0] == 0.0


@pytest.mark.parametrize(("n", "width", "why"), [(4, 300, "300 features an image"), (5_001, 2, "more images than")])
def test_no_interval_is_said_with_the_reason(n: int, width: int, why: str) -> None:
    metric = Fid(extractor=mean_colour()).update_features(_rows(n, width))
    score = metric.update_features(_rows(4, width, seed=1), reference=True).compute()
    assert (score.interval, score.standard_error) == (None, None)
    assert why in str(score.as_json()["no_interval"])


def test_many_pictures_need_no_warning_and_no_more_memory() -> None:
    metric = Fid(extractor=mean_colour())
    for seed in range(6):
        metric.update_features(_rows(1_000, 2, seed=seed))
        metric.update_features(_rows(1_000, 2, seed=100 + seed), reference=True)
    kept = [sum(map(len, rows)) for rows in metric._kid._features]
    assert kept == [ENOUGH, ENOUGH]
    score = metric.compute()
    assert (score.warning, score.kid, score.n) == ("", None, 6_000)
    assert "n = 6,000 against 6,000" in str(score)


def test_a_reference_serves_several_models() -> None:
    x, y, z = _rows(60, 4), _rows(50, 4, seed=1), _rows(40, 4, seed=2)
    reference = Fid(extractor=mean_colour(), reference="drawings").update_features(y, reference=True)
    one, other = (reference.again().update_features(rows).compute() for rows in (x, z))
    assert (
        one
        == Fid(extractor=mean_colour(), reference="drawings")
        .update_features(y, reference=True)
        .update_features(x)
        .compute()
    )
    assert (one.n, other.n, other.reference_n) == (60, 40, 50)
    assert other.value == pytest.approx(fid(z, y))
    assert other.kid is not None
    assert other.kid.value == pytest.approx(kid(z, y))


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        fid(_rows(1, 4), _rows(5, 4))
    with pytest.raises(InputError, match="got 0"):
        Fid(extractor=mean_colour()).update(pictures(3)).compute()
