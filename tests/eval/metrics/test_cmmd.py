"""CMMD: the Gaussian kernel's known discrepancy, unit length, the factor of a thousand."""

from math import exp

import pytest
import torch

from erasure.eval.metrics.cmmd import Cmmd, cmmd, gaussian_kernel
from erasure.eval.metrics.mmd import unbiased_mmd2

from .tiny_judges import mean_colour, pictures


def test_kernel_of_known_distances() -> None:
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(gaussian_kernel(x, y, sigma=5), torch.tensor([[1.0, exp(-0.5)]]))


def test_discrepancy_of_two_gaussians_on_average() -> None:
    # With x - y ~ N(d, v): E exp(-(x - y)^2 / 2 s^2) = s / sqrt(s^2 + v) exp(-d^2 / 2 (s^2 + v)), here s = 1, v = 2.
    expected = 2 * 3**-0.5 * (1 - exp(-1 / 6))
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(500):
        x, y = (torch.randn(40, 1, generator=generator, dtype=torch.float64) + shift for shift in (0.0, 1.0))
        draws.append(unbiased_mmd2(x, y, lambda a, b: gaussian_kernel(a, b, sigma=1)))
    found = torch.tensor(draws)
    assert abs(float(found.mean()) - expected) < 3 * float(found.std() / len(found) ** 0.5)


def test_two_points_in_each_set_by_hand() -> None:
    # Orthogonal unit vectors are at squared distance 2.
    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert cmmd(x, y) == pytest.approx(1000 * (1 + 1 - 2 * exp(-2 / 200)))
    assert cmmd(5 * x, 0.1 * y) == pytest.approx(cmmd(x, y))  # the length of a feature says nothing


def test_equal_distributions_are_at_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor(
        [cmmd(torch.randn(8, 4, generator=generator), torch.randn(8, 4, generator=generator)) for _ in range(1_000)]
    )
    assert abs(float(draws.mean())) < 3 * float(draws.std() / len(draws) ** 0.5)


def test_streaming_over_pictures_is_the_function_over_features() -> None:
    judged, reference, read = pictures(7), pictures(9, seed=1), mean_colour()
    metric = Cmmd(extractor=read, resamples=20)
    metric.update(judged[:6]).update(judged[6:]).update_reference(reference)
    score = metric.compute()
    assert score.value == pytest.approx(cmmd(read(judged), read(reference)), rel=1e-4)
    assert score.setup is not None
    assert score.setup.metric == "cmmd"
