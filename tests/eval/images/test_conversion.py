"""One picture gives one set of pixels, whatever it came in as."""

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.errors import InputError
from erasure.eval.images.conversion import as_pil, as_uint8
from tests.eval.metrics.tiny_judges import pictures


def _every_form(images: list[Image.Image]) -> dict[str, object]:
    array = np.stack([np.asarray(image) for image in images])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    return {
        "PIL": images,
        "uint8 array": array,
        "float32 array": (array / 255).astype(np.float32),
        "float64 array": array / 255,
        "uint8 tensor": tensor,
        "float32 tensor": tensor.float() / 255,
        "float16 tensor": (tensor.float() / 255).half(),
    }


@pytest.mark.parametrize("form", list(_every_form(pictures(1))))
def test_every_form_gives_the_same_pixels(form: str) -> None:
    images = pictures(3)
    given = _every_form(images)[form]
    assert torch.equal(as_uint8(given), as_uint8(images))
    assert [image.tobytes() for image in as_pil(given)] == [image.tobytes() for image in images]


def test_all_levels_survive_a_float() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert torch.equal(as_uint8((levels.double() / 255).to(dtype)), levels)


@pytest.mark.parametrize("value", [-0.01, 1.5, 255.0, float("nan")])
def test_floats_outside_the_range_are_refused(value: float) -> None:
    pixels = torch.full((1, 3, 4, 4), 0.5)
    pixels[0, 0, 0, 0] = value
    with pytest.raises(InputError, match=r"expected float images in \[0, 1\]"):
        as_uint8(pixels)


def test_pictures_of_different_sizes_make_no_tensor() -> None:
    with pytest.raises(InputError, match="one size"):
        as_uint8([*pictures(1, 16), *pictures(1, 32)])


def test_other_modes_become_rgb() -> None:
    grey = Image.new("L", (4, 4), 77)
    assert as_uint8([grey]).unique().tolist() == [77]
    assert as_pil([Image.new("RGBA", (4, 4), (1, 2, 3, 255))])[0].getpixel((0, 0)) == (1, 2, 3)
