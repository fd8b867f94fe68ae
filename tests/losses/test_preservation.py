"""Distances to what a denoiser should predict."""

import torch

from erasure.losses.preservation import prior_preservation


def test_prior_preservation_of_known_differences() -> None:
    one = torch.zeros(2, 1, 2, 2)
    assert prior_preservation(one, one).item() == 0
    assert prior_preservation(one + 3, one).item() == 9
