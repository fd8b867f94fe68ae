"""Random views of a few images: Custom Diffusion's augmentation, at any size, with the mask of the loss.

Kumari et al., CVPR 2023, arXiv:2212.04488, as its published code has it and ClassDiffusion and Concept Ablation use it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...backbones.autoencoder import encoded_pixels
from ...backbones.base import Backbone
from ..finetune import below, uniform

_SHRUNK = 0.66  # share of views that are made smaller
_SMALLEST, _LARGEST = 1 / 3, (1.2, 1.4)
_FAR, _NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")
_FAR_BELOW = 0.6


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Augmented view of an image, with its mask and the start of its prompt.

    Attributes:
        pixels: RGB values in [-1, 1]; 0 around an image that was shrunk.
        mask: Mask of the loss at the size of the latents: 1 inside the image, one latent from its border; else 0.
        prefix: Words before the prompt for the size of the image in the view; "" for none.
    """

    pixels: Float[Tensor, "3 side side"]
    mask: Float[Tensor, "1 cells cells"]
    prefix: str


def squared(image: Image.Image) -> Image.Image:
    """Return the largest square in the middle of an image, as RGB."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.convert("RGB").crop((left, top, left + side, top + side))


def view_of(
    image: Image.Image, *, side: int, factor: int, augment: bool, flip: bool, generator: torch.Generator
) -> View:
    """Return a view of a square image.

    Two of three are shrunk to between a third of `side` and `side` and pasted at a random position; the others are
    enlarged to 1.2 to 1.4 of `side` and cropped.

    Args:
        image: Square RGB image.
        side: Side of the view in pixels; a multiple of `factor`.
        factor: Pixels per latent along one side.
        augment: Whether the view is augmented; else it is the whole image, and so is its mask.
            Differs from the code: there the mask of a whole image leaves out a margin of one latent, too.
        flip: Whether half of the views are mirrored.
        generator: Generator of the random draws.
    """
    if flip and uniform(generator) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    cells = side // factor
    if not augment:
        return View(pixels=_pixels(image, side), mask=torch.ones(1, cells, cells), prefix="")
    if uniform(generator) < _SHRUNK:
        return _pasted(image, side, factor, generator)
    low, high = _LARGEST
    size = round(side * (low + (high - low) * uniform(generator)))
    top, left = below(size - side + 1, generator), below(size - side + 1, generator)
    pixels = _pixels(image, size)[:, top : top + side, left : left + side]
    return View(pixels=pixels, mask=torch.ones(1, cells, cells), prefix=_NEAR[below(2, generator)])


def _pasted(image: Image.Image, side: int, factor: int, generator: torch.Generator) -> View:
    least = max(round(side * _SMALLEST), 3 * factor)  # so that a latent is left inside its margin wherever it lies
    size = min(side, least + below(side - least + 1, generator)) if least < side else side
    top, left = below(side - size + 1, generator), below(side - size + 1, generator)
    pixels = torch.zeros(3, side, side)
    pixels[:, top : top + size, left : left + size] = _pixels(image, size)
    mask = torch.zeros(1, side // factor, side // factor)
    rows, columns = (slice(start // factor + 1, (start + size) // factor - 1) for start in (top, left))
    mask[:, rows, columns] = 1.0
    far = size < _FAR_BELOW * side
    return View(pixels=pixels, mask=mask, prefix=_FAR[below(2, generator)] if far else "")


def _pixels(image: Image.Image, side: int) -> Float[Tensor, "3 side side"]:
    resized = image.resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 127.5 - 1


def reads_images(backbone: Backbone) -> bool:
    """Return True if the model's autoencoder is of the kind that `image_latents` encodes with."""
    return isinstance(backbone.pipe.vae, AutoencoderKL)


@torch.no_grad()
def image_latents(
    backbone: Backbone, pixels: Float[Tensor, "n 3 side side"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Return latents of images in [-1, 1], drawn from the distribution of the autoencoder and scaled as in training."""
    return encoded_pixels(backbone.pipe.vae, pixels, generator).to(backbone.device)
