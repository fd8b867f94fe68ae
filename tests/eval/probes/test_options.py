"""Probes that are options: what each does to a model or an image, on models without training."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.eval.probes import MissingError, Models, Subject
from erasure.eval.probes.capacity import Capacity, bits
from erasure.eval.probes.examples import example_latents
from erasure.eval.probes.inpainting import Inpainting, middle
from erasure.eval.probes.null_text import NullText, start_noise
from erasure.eval.probes.transplant import Transplant, most_changed
from erasure.profile import profile_of
from erasure.sampling import SamplingSettings, sample_part
from tests.contract.test_probes import _Open, aim
from tests.eval.world import oracle, pipeline

AIM = aim(profile_of("tinyworld"))


def changed_pipeline() -> Any:
    """Return the pipeline with half of the rows of its values moved."""
    pipe = copy.copy(pipeline())
    pipe.unet = copy.deepcopy(pipe.unet)
    backbone = backbone_of(pipe)
    with torch.no_grad():
        for weight in backbone.parameters(backbone.sites(("cross.v",)).__contains__).values():
            weight[::2] *= torch.linspace(1.5, 3, len(weight[::2]))[:, None]
    return pipe


def arrays(images: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def test_a_whole_transplant_is_the_original_and_a_small_one_takes_what_changed_most() -> None:
    original, edited = pipeline(), changed_pipeline()
    material = Transplant().material(Models(original=lambda: _Open(original)), AIM)
    subject = Subject(pipe=edited, aim=AIM, material=material)
    weights = {name: p.data for name, p in subject.denoiser_weights.items()}
    changed = sum(int((w != material[name]).flatten(1).any(1).sum()) for name, w in weights.items())
    picked = [most_changed(weights, material, share) for share in (0.1, 0.5, 1.0)]
    counts = [sum(int(mask.sum()) for mask in rows.values()) for rows in picked]
    assert counts == [round(0.1 * changed), round(0.5 * changed), changed]
    assert all(
        bool((small[name] <= large[name]).all()) for small, large in itertools.pairwise(picked) for name in small
    )
    (whole,) = Transplant(doses=(1.0,)).outcomes(subject)
    plain = Subject(pipe=original, aim=AIM)
    assert np.array_equal(arrays(whole.images), arrays(plain.sampled()))
    assert np.array_equal(arrays(whole.kept), arrays(plain.sampled_kept()))
    assert not np.array_equal(arrays(subject.sampled()), arrays(plain.sampled()))
    (nothing,) = Transplant(doses=(0.5,)).outcomes(Subject(pipe=original, aim=AIM, material=material))
    assert np.array_equal(arrays(nothing.images), arrays(plain.sampled())), "the original has no changed unit"


def test_what_stays_visible_is_the_given_image() -> None:
    pipe = pipeline()
    probe = Inpainting(doses=(0.75,))
    material = probe.material(Models(original=lambda: _Open(pipe)), AIM)
    painted = probe.painted(Subject(pipe=pipe, aim=AIM, material=material), 0.75)
    square = middle((16, 16), 0.25)
    assert torch.equal(painted[..., ~square], material["clean"][..., ~square])
    assert not torch.equal(painted[..., square], material["clean"][..., square])


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.85])
def test_the_square_has_the_share_of_the_area_and_leaves_some(share: float) -> None:
    mask = middle((16, 16), share)
    assert 0 < int(mask.sum()) < 256
    assert float(mask.float().mean()) == pytest.approx(share, abs=0.09)
    assert abs(int(mask[:8].sum()) - int(mask[8:].sum())) <= 16, "in the middle, to within a row"


def test_an_inversion_returns_the_image_at_90_degrees() -> None:
    pipe = copy.copy(pipeline())
    pipe.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():  # without training the output is no noise, and errors of the first steps grow with it
        for weight in pipe.unet.conv_out.parameters():
            weight.mul_(0.01)
    clean = example_latents(Models(original=lambda: _Open(pipeline())), AIM, "cat", 2)
    noise = start_noise(pipe, clean, 5, 8)
    unguided = SamplingSettings(steps=5, guidance_scale=1.0)
    empty = backbone_of(pipe).unconditional().expand(2)
    back = sample_part(pipe, empty, noise, [0, 1], unguided, output="latents")
    torch.testing.assert_close(back, clean, atol=2e-2, rtol=2e-2)
    once = sample_part(pipe, empty, start_noise(pipe, clean, 5, 1), [0, 1], unguided, output="latents")
    assert (back - clean).abs().mean() < (once - clean).abs().mean(), "the iterations do the work"


def test_a_scheduler_that_adds_noise_cannot_be_inverted() -> None:
    from diffusers import EulerDiscreteScheduler

    pipe = copy.copy(pipeline())
    pipe.scheduler = EulerDiscreteScheduler()
    probe = NullText()
    subject = Subject(pipe=pipe, aim=AIM, material={"clean": torch.zeros(2, 4, 16, 16)})
    with pytest.raises(InputError, match="null-text: expected a DDIM scheduler, got EulerDiscreteScheduler"):
        list(probe.outcomes(subject))


def test_bits_of_a_name() -> None:
    assert bits(0, 39, 33) == 0, "log2(33 / 80) is below 0"
    assert bits(40, 40, 33) == pytest.approx(math.log2(33 * 40.5 / 41))
    assert bits(1, 1, 2) == pytest.approx(math.log2(1.5))
    judge = oracle()
    [outcome] = Capacity(doses=(16.0,), images=1, names=2).outcomes(Subject(pipe=pipeline(), aim=AIM, judge=judge))
    assert set(outcome.values) <= {1.0, 1 - math.log2(1.5)}, "each is lost or has the most that one image can show"
    with pytest.raises(MissingError, match="a judge of the images"):
        list(Capacity().outcomes(Subject(pipe=pipeline(), aim=AIM)))
    unknown = aim(profile_of("some/model"))
    with pytest.raises(MissingError, match="a model whose names are known"):
        list(Capacity().outcomes(Subject(pipe=pipeline(), aim=unknown, judge=oracle())))
