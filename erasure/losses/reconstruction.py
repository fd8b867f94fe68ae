"""Reconstruction loss of images that a model learns."""

from jaxtyping import Float
from torch import Tensor


def masked_reconstruction(
    predicted: Float[Tensor, "n c h w"], target: Float[Tensor, "n c h w"], mask: Float[Tensor, "n 1 h w"]
) -> Float[Tensor, ""]:
    """Return Custom Diffusion's reconstruction loss (Kumari et al., CVPR 2023, arXiv:2212.04488; the published code).

        mean_b [ sum(M_b (target_b - predicted_b)^2) / sum(M_b) ]

    The denominator counts the one channel of the mask, so the value is as many times a plain mean as there are
    channels.

    Args:
        predicted: The denoiser's output.
        target: `NoiseSchedule.target`.
        mask: In [0, 1]: where each image shows something; not all 0.
    """
    errors = mask * (target - predicted).square()
    return (errors.sum((1, 2, 3)) / mask.sum((1, 2, 3))).mean()
