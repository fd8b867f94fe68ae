"""Guidances by attention maps on transformers of flow matching."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.conditioning import reading
from erasure.guidance.a_star import AStar
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.attention import GuidedStep
from erasure.guidance.base import named_prompts
from erasure.sampling import SamplingSettings, noise, sample
from tests import tiny


def latents(backbone: Any, seed: int = 0) -> Tensor:
    return noise([torch.Generator().manual_seed(seed)], backbone.latent_shape())


@pytest.mark.parametrize("distilled", [False, True])
def test_updates_lower_the_loss_and_every_call_of_a_step_reads_them(distilled: bool) -> None:
    pipe = tiny.flux(guidance_embeds=distilled)
    backbone = backbone_of(pipe)
    read: list[Tensor] = []
    steps: list[GuidedStep] = []

    def note(_: object, args: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():  # a call of the loop, not one for the gradient
            read.append(args[0].clone())

    pipe.transformer.x_embedder.register_forward_pre_hook(note)
    refined = {"refine_at": (0,), "peaks": (0.99,), "refine_updates": 4, "steps_range": (0.0, 1.0)}
    guidance = AttendAndExcite(concepts=("cat", "dog"), alpha=5.0, on_guided=steps.append, **refined)
    with guidance.applied_to(pipe):
        sample(pipe, ["a cat and a dog"], [0], SamplingSettings(steps=2, guidance_scale=4.0), output="latents")
    assert [each.step for each in steps] == [0, 1]
    assert steps[0].updates[0] > 2
    assert steps[0].last_loss[0] < steps[0].loss[0] < 1
    assert [tuple(each.maps[0].shape) for each in steps] == [(2, 4, 4)] * 2
    assert len(read) == (2 if distilled else 4)
    assert not torch.equal(read[0], backbone.packed(latents(backbone)))
    if not distilled:
        assert torch.equal(read[0], read[1])
        assert torch.equal(read[2], read[3])


@pytest.mark.parametrize("family", tiny.JOINT)
def test_maps_are_shares_of_the_attention_to_the_text(family: str) -> None:
    pipe = tiny.JOINT[family]()
    backbone, guidance = backbone_of(pipe), AStar(concepts=("cat",))
    capture = guidance.capture(backbone.denoiser)
    states, begin = backbone.encode(["a cat"]), latents(backbone)
    maps = capture.read_from(lambda: backbone.predict(begin, torch.tensor(500), states))
    attention = guidance.attention(capture, maps, begin, backbone.denoiser)
    assert attention.shape == (1, states.states.shape[1], 4, 4)
    torch.testing.assert_close(attention.sum(1), torch.ones(1, 4, 4))


@pytest.mark.parametrize(("family", "start"), [("sd1", 1), ("sd3", 1), ("flux", 0)])
def test_a_concept_has_tokens_of_every_encoder(family: str, start: int) -> None:
    pipe = tiny.EVERY[family]()
    states = backbone_of(pipe).encode(["cat there"])
    with named_prompts(pipe, ["cat"]) as named, reading(states):
        [row] = named()
    parts = states.streams["text"].tokens
    first = parts[0].ids.shape[1]
    assert row.start == start
    assert min(row.positions[0]) == start
    assert any(place >= first for place in row.positions[0]) == (len(parts) > 1)


def test_packed_latents_of_any_shape_are_unpacked_by_their_places() -> None:
    pipe = tiny.flux()
    backbone, wide = backbone_of(pipe), torch.randn(2, 4, 8, 12)
    places = pipe._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    assert torch.equal(backbone.latents_in(backbone.packed(wide), {"img_ids": places}), wide)
