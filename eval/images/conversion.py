"""Images as every metric takes them, so that one image gives one number whatever it came in as."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from erasure.errors import InputError

Images = (
    Sequence[Image.Image]
    | UInt8[np.ndarray, "_ _ _ 3"]
    | Float[np.ndarray, "_ _ _ 3"]
    | UInt8[Tensor, "_ 3 _ _"]
    | Float[Tensor, "_ 3 _ _"]
)
"""PIL images; or arrays (n, height, width, 3); or tensors (n, 3, height, width).

Arrays and tensors say their range by their type: uint8 in [0, 255], float in [0, 1].
"""


def as_pil(images: Images) -> list[Image.Image]:
    """Return images as PIL RGB, float ones rounded to the nearest of 256 levels.

    Raises:
        InputError: A float image has values outside [0, 1].
    """
    if isinstance(images, np.ndarray | Tensor):
        return [Image.fromarray(row) for row in as_uint8(images).permute(0, 2, 3, 1).contiguous().numpy()]
    return [image.convert("RGB") for image in images]


def as_uint8(images: Images) -> UInt8[Tensor, "n 3 h w"]:
    """Return images as one tensor on the CPU, float ones rounded to the nearest of 256 levels.

    Raises:
        InputError: A float image has values outside [0, 1], there are no images, or their sizes differ.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    if isinstance(images, Tensor):
        return _levels(images.detach().cpu())
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise InputError(f"images: expected images of one size, got {sorted(sizes)!r}. Resize them alike.")
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).permute(0, 3, 1, 2)


def _levels(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    levels = pixels.double()
    low, high = (float(edge) for edge in levels.aminmax()) if levels.numel() else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # so nan is refused too
        raise InputError(
            f"images: expected float images in [0, 1], got values in [{low:.3g}, {high:.3g}]."
            " Rescale them, or give uint8."
        )
    return levels.mul(255).round().to(torch.uint8)
