"""How a few pictures become many: Custom Diffusion's augmentation, at any size, with the mask of what counts.

Kumari et al., CVPR 2023, arXiv:2212.04488, as its published code has it and ClassDiffusion uses it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..training.finetune import below

_SHRUNK = 0.66  # share of views that are made smaller
_SMALLEST, _LARGEST = 1 / 3, (1.2, 1.4)
_FAR, _NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")
_FAR_BELOW = 0.6


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A picture as it is shown to the model in training.

    Attributes:
        pixels: In [-1, 1]; 0 beside a picture that was shrunk.
        mask: At the size of the latents, 1 where the picture is, less one latent at each side.
        prefix: What the prompt begins with to say how large the picture is; "" for nothing.
    """

    pixels: Float[Tensor, "3 side side"]
    mask: Float[Tensor, "1 cells cells"]
    prefix: str


def squared(picture: Image.Image) -> Image.Image:
    """Return the largest square in the middle of a picture, as RGB."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.convert("RGB").crop((left, top, left + side, top + side))


def view_of(
    picture: Image.Image, *, side: int, factor: int, augment: bool, flip: bool, generator: torch.Generator
) -> View:
    """Return a view of a square picture.

    Two of three are shrunk to a third of `side` or more and pasted at some place; the others are enlarged to 1.2 to
    1.4 of it and cut.

    Args:
        picture: Square, RGB.
        side: Of the view, in pixels; a multiple of `factor`.
        factor: Pixels a latent.
        augment: Whether to; else the view is the whole picture.
        flip: Whether half of the views are mirrored.
        generator: Of the draws.
    """
    if flip and _uniform(generator) < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cells = side // factor
    if not augment:
        return View(pixels=_pixels(picture, side), mask=torch.ones(1, cells, cells), prefix="")
    if _uniform(generator) < _SHRUNK:
        return _pasted(picture, side, factor, generator)
    low, high = _LARGEST
    size = round(side * (low + (high - low) * _uniform(generator)))
    top, left = below(size - side + 1, generator), below(size - side + 1, generator)
    pixels = _pixels(picture, size)[:, top : top + side, left : left + side]
    return View(pixels=pixels, mask=torch.ones(1, cells, cells), prefix=_NEAR[below(2, generator)])


def _pasted(picture: Image.Image, side: int, factor: int, generator: torch.Generator) -> View:
    least = max(round(side * _SMALLEST), 3 * factor)  # so that a latent is left inside its margin wherever it lies
    size = min(side, least + below(side - least + 1, generator)) if least < side else side
    top, left = below(side - size + 1, generator), below(side - size + 1, generator)
    pixels = torch.zeros(3, side, side)
    pixels[:, top : top + size, left : left + size] = _pixels(picture, size)
    mask = torch.zeros(1, side // factor, side // factor)
    rows, columns = (slice(start // factor + 1, (start + size) // factor - 1) for start in (top, left))
    mask[:, rows, columns] = 1.0
    far = size < _FAR_BELOW * side
    return View(pixels=pixels, mask=mask, prefix=_FAR[below(2, generator)] if far else "")


def _pixels(picture: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    resized = picture.resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
