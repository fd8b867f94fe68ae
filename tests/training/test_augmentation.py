"""Custom Diffusion's views of a picture: where it lies, what the mask says, what the prompt says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from erasure.training.draws.augmentation import squared, view_of

RED = Image.new("RGB", (40, 40), (255, 0, 0))


def viewed(seed: int, **how: object) -> object:
    given = {"side": 64, "factor": 4, "augment": True, "flip": False, **how}
    return view_of(RED, generator=torch.Generator().manual_seed(seed), **given)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), side=st.sampled_from([16, 32, 64]), factor=st.sampled_from([2, 4]))
def test_the_mask_is_inside_the_picture_and_never_empty(seed: int, side: int, factor: int) -> None:
    view = view_of(
        RED, side=side, factor=factor, augment=True, flip=False, generator=torch.Generator().manual_seed(seed)
    )
    assert view.pixels.shape == (3, side, side)
    assert view.mask.shape == (1, side // factor, side // factor)
    assert view.mask.sum() > 0
    shown = torch.nn.functional.interpolate(view.mask[None], scale_factor=factor)[0, 0].bool()
    assert (view.pixels[0][shown] == 1).all()  # red wherever the mask is
    covered = (view.pixels[0] == 1).float().mean() * side * side
    assert shown.sum() <= covered
    if not shown.all():
        assert view.prefix in ("", "a far away ", "very small ")
        assert bool(view.prefix) == (covered**0.5 < 0.6 * side - 1e-3)


def test_two_of_three_are_shrunk_and_the_others_fill_the_frame() -> None:
    views = [viewed(seed) for seed in range(300)]
    shrunk = sum(bool((view.pixels == 0).any()) for view in views)  # type: ignore[attr-defined]
    assert 160 <= shrunk <= 230
    near = [view for view in views if view.prefix in ("zoomed in ", "close up ")]  # type: ignore[attr-defined]
    assert near
    assert all(view.mask.all() for view in near)  # type: ignore[attr-defined]


def test_without_augmentation_the_whole_picture_is_shown() -> None:
    view = viewed(0, augment=False)
    assert view.mask.all()  # type: ignore[attr-defined]
    assert view.prefix == ""  # type: ignore[attr-defined]
    assert (view.pixels[0] == 1).all()  # type: ignore[attr-defined]


def test_flipping_mirrors_about_half() -> None:
    halves = Image.new("RGB", (8, 8))
    halves.paste((255, 255, 255), (0, 0, 4, 8))
    left = [
        bool(
            view_of(
                halves, side=8, factor=2, augment=False, flip=True, generator=torch.Generator().manual_seed(seed)
            ).pixels[0, 4, 0]
            == 1
        )
        for seed in range(60)
    ]
    assert 15 <= sum(left) <= 45


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (20, 20)])
def test_a_picture_is_cut_to_the_square_in_its_middle(size: tuple[int, int]) -> None:
    assert squared(Image.new("L", size)).size == (min(size), min(size))
    assert squared(Image.new("L", size)).mode == "RGB"
