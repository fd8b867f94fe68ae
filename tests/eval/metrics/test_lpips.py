"""LPIPS: torchmetrics' network over a random backbone, both variants."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.errors import InputError
from erasure.eval.features.weights import MissingWeightsError
from erasure.eval.images.conversion import as_uint8
from erasure.eval.metrics.lpips import Lpips, load_lpips, lpips

from .tiny_judges import pictures, seeded

VARIANTS: tuple[Any, ...] = ("lpips_512", "lpips_64")


@cache
def _net() -> Any:
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    # The real heads over a SqueezeNet without weights: the smallest that torchmetrics has.
    return seeded(lambda: _NoTrainLpips(net="squeeze", pnet_rand=True))


def test_equal_pictures_are_at_no_distance() -> None:
    pixels = as_uint8(pictures(3, size=64))
    assert lpips(_net(), pixels, pixels).tolist() == [0.0, 0.0, 0.0]


def test_a_pair_alone_has_the_distance_that_it_has_among_others() -> None:
    before, after = as_uint8(pictures(3, size=64)), as_uint8(pictures(3, size=64, seed=1))
    whole = lpips(_net(), before, after)
    assert whole.shape == (3,)
    assert len(set(whole.tolist())) == 3
    torch.testing.assert_close(lpips(_net(), before[2:], after[2:]), whole[2:])


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.image.lpips import _lpips_update

    before, after = as_uint8(pictures(2, size=64)), as_uint8(pictures(2, size=64, seed=1))
    expected = _lpips_update(before / 127.5 - 1, after / 127.5 - 1, _net(), normalize=False)
    torch.testing.assert_close(lpips(_net(), before, after), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_stream_and_a_last_batch_of_one_changes_no_mean(variant: Any) -> None:
    before, after = pictures(3, size=64), pictures(3, size=64, seed=1)
    whole = Lpips(variant=variant, net=_net()).update(before, after).compute()
    parts = Lpips(variant=variant, net=_net()).update(before[:2], after[:2]).update(before[2:], after[2:]).compute()
    assert parts.per_image == pytest.approx(whole.per_image, rel=1e-4)
    assert whole.value == pytest.approx(sum(whole.per_image) / 3)
    assert whole.setup is not None
    assert whole.setup.metric == variant
    assert whole.setup.resize == f"bilinear, antialias, {variant[6:]}"
    assert not whole.higher_is_better


def test_the_small_variant_sees_what_is_left_after_shrinking() -> None:
    # Stripes a pixel wide, shifted by one, are one grey at 64 x 64 and two pictures at 512 x 512.
    columns = (np.arange(512) % 2 * 255).astype(np.uint8)[None].repeat(512, 0)
    stripes, shifted = Image.fromarray(columns), Image.fromarray(255 - columns)
    large, small = (Lpips(variant=v, net=_net()).update([stripes], [shifted]).compute().value for v in VARIANTS)
    assert small < large / 10


def test_float_and_uint8_pictures_are_at_the_same_distance() -> None:
    before, after = as_uint8(pictures(2, size=64)), as_uint8(pictures(2, size=64, seed=1))
    whole = Lpips(variant="lpips_64", net=_net()).update(before, after).compute()
    assert Lpips(variant="lpips_64", net=_net()).update(before.float() / 255, after.double() / 255).compute() == whole


def test_pairs_are_pairs() -> None:
    with pytest.raises(InputError, match="got 2 and 1"):
        Lpips(net=_net()).update(pictures(2), pictures(1))


def test_missing_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="alexnet") as caught:
        Lpips()
    assert "\n" not in str(caught.value)


@pytest.mark.weights
def test_real_weights_put_noise_further_than_a_small_change() -> None:
    try:
        net = load_lpips()
    except MissingWeightsError as error:
        pytest.skip(str(error))
    image, other = pictures(1, size=64), pictures(1, size=64, seed=1)
    near = [image[0].point(lambda level: min(255, level + 3))]
    metric = Lpips(variant="lpips_64", net=net).update([*image, *image], [*near, *other]).compute()
    assert metric.per_image[0] < 0.1 < metric.per_image[1]
