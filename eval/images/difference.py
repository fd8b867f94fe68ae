"""Difference of two images, pixel by pixel."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from erasure.errors import InputError

_COLOUR = np.array([255, 40, 90], dtype=np.float32)


def difference(before: Image.Image, after: Image.Image) -> Float[np.ndarray, "h w"]:
    """Return the mean absolute difference over the colours of each pixel, in [0, 1].

    Raises:
        InputError: The images differ in size.
    """
    if before.size != after.size:
        raise InputError(f"difference: expected images of one size, got {before.size} and {after.size}.")
    pixels = [np.asarray(image.convert("RGB"), dtype=np.float32) / 255 for image in (before, after)]
    return np.abs(pixels[0] - pixels[1]).mean(axis=2)


def difference_map(before: Image.Image, after: Image.Image) -> Image.Image:
    """Return the first image in pale grey with colour where the second differs, full where by half of the range.

    The scale is the same for all images, so that two maps may be compared.

    Raises:
        InputError: The images differ in size.
    """
    share = (2 * difference(before, after)).clip(0, 1)[..., None]
    grey = np.asarray(before.convert("L").convert("RGB"), dtype=np.float32)
    mixed = (0.55 * grey + 0.3 * 255) * (1 - share) + _COLOUR * share
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))
