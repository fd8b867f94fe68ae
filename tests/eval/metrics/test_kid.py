"""KID and what it shares with CMMD: unbiased, known values, an interval that covers."""

from math import comb

import pytest
import torch

from erasure.errors import InputError
from erasure.eval.metrics import mmd
from erasure.eval.metrics.kid import Kid, kid, polynomial_kernel
from erasure.eval.metrics.mmd import mmd2_with_draws, unbiased_mmd2, weighted_mmd2

from .tiny_judges import mean_colour, pictures


def _draw(n: int, dim: int, generator: torch.Generator, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + shift


def _kid_of_gaussians(shift: float) -> float:
    """KID in one dimension of N(0, 1) and N(shift, 1): (xy + 1)^3 compares the first three moments."""
    one, other = (0.0, 1.0, 0.0), (shift, shift**2 + 1, shift**3 + 3 * shift)
    return sum(comb(3, k) * (a - b) ** 2 for k, (a, b) in enumerate(zip(one, other, strict=True), start=1))


def test_equal_distributions_are_at_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([kid(_draw(12, 3, generator), _draw(9, 3, generator)) for _ in range(1_000)])
    error = float(draws.std() / len(draws) ** 0.5)
    assert abs(float(draws.mean())) < 3 * error
    assert (draws < 0).any()  # what cannot go below 0 is biased
    # The test would see a bias: with the pairs of a picture with itself in it, the mean is far above 0.
    biased = torch.tensor([_biased(_draw(12, 3, generator), _draw(9, 3, generator)) for _ in range(200)])
    assert float(biased.mean()) > 10 * error


def _biased(x: torch.Tensor, y: torch.Tensor) -> float:
    kernels = (polynomial_kernel(a, b).mean() for a, b in ((x, x), (y, y), (x, y)))
    xx, yy, xy = (float(value) for value in kernels)
    return xx + yy - 2 * xy


def test_two_gaussians_are_at_the_known_distance_on_average() -> None:
    generator = torch.Generator().manual_seed(1)
    draws = torch.tensor([kid(_draw(40, 1, generator), _draw(40, 1, generator, 0.5)) for _ in range(500)])
    error = float(draws.std() / len(draws) ** 0.5)
    assert abs(float(draws.mean()) - _kid_of_gaussians(0.5)) < 3 * error


def test_agrees_with_torchmetrics_over_one_subset_of_all() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    generator = torch.Generator().manual_seed(0)
    x, y = _draw(50, 8, generator), _draw(50, 8, generator, 0.3)
    with pytest.warns(UserWarning, match="save all extracted features"):
        reference = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=1, subset_size=50)
    reference.update(x, real=True)
    reference.update(y, real=False)
    assert kid(x, y) == pytest.approx(float(reference.compute()[0]), rel=1e-5)


def test_weights_count_rows() -> None:
    # A row of weight 0 is not there; pairs of a row with its own copy are none, whatever its weight.
    generator = torch.Generator().manual_seed(0)
    x, y = _draw(6, 2, generator), _draw(5, 2, generator)
    one_less = torch.ones(1, 6, dtype=torch.float64)
    one_less[0, 2] = 0
    found = weighted_mmd2(x, y, polynomial_kernel, one_less, torch.ones(1, 5, dtype=torch.float64))
    assert float(found) == pytest.approx(kid(x[[0, 1, 3, 4, 5]], y))
    twice = weighted_mmd2(x, y, polynomial_kernel, torch.full((1, 6), 2.0), torch.full((1, 5), 3.0))
    assert float(twice) == pytest.approx(kid(x, y))


def test_two_pictures_a_set_have_an_interval() -> None:
    # Half of all draws of two rows would be one row twice, which makes no pair.
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    estimate, draws = mmd2_with_draws(x, y, polynomial_kernel, resamples=20, seed=0)
    assert estimate == pytest.approx(kid(x, y))
    assert draws.isfinite().all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = _draw(23, 3, generator), _draw(17, 3, generator)
    whole = unbiased_mmd2(x, y, polynomial_kernel)
    monkeypatch.setattr(mmd, "BLOCK", 5)
    assert unbiased_mmd2(x, y, polynomial_kernel) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("shift", "least", "most"), [(1.0, 0.86, 0.99), (0.0, 0.95, 1.0)])
def test_interval_covers_the_truth(shift: float, least: float, most: float) -> None:
    # Near 95 % where the distributions differ, to within what 120 trials can tell; wider where they are equal.
    generator = torch.Generator().manual_seed(2)
    truth, covered, trials = _kid_of_gaussians(shift), 0, 120
    for seed in range(trials):
        x, y = _draw(300, 1, generator), _draw(300, 1, generator, shift)
        _, draws = mmd2_with_draws(x, y, polynomial_kernel, resamples=200, seed=seed)
        low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        covered += low <= truth <= high
    assert least <= covered / trials <= most


def test_interval_narrows_with_the_number_of_pictures_not_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    widths = {}
    for n, resamples in ((50, 200), (50, 800), (800, 200)):
        metric = Kid(extractor=mean_colour(), resamples=resamples)
        metric.update_features(_draw(n, 3, generator)).update_features(_draw(n, 3, generator, 1.0), reference=True)
        low, high = metric.compute().interval or (0.0, 0.0)
        widths[n, resamples] = high - low
    assert widths[800, 200] < widths[50, 200] / 2
    assert widths[50, 800] > widths[50, 200] / 2


def test_streaming_over_pictures_is_the_function_over_features() -> None:
    judged, reference, read = pictures(7), pictures(9, seed=1), mean_colour()
    metric = Kid(extractor=read, resamples=50)
    metric.update(judged[:6]).update(judged[6:]).update_reference(reference[:8]).update_reference(reference[8:])
    score = metric.compute()
    assert score.value == pytest.approx(kid(read(judged), read(reference)))
    assert score == metric.compute()  # the bootstrap has its own seed
    assert score.interval is not None
    assert score.standard_error is not None
    assert (score.n, score.reference_n, score.per_image) == (7, 9, ())


def test_a_set_of_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        kid(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(InputError, match="got 0"):
        Kid(extractor=mean_colour()).update(pictures(3)).compute()
    with pytest.raises(InputError, match="resamples"):
        Kid(extractor=mean_colour(), resamples=1)
