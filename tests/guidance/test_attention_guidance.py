"""A-STAR and Attend-and-Excite: guidance of the latents by a loss on attention maps."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from erasure import tinyworld
from erasure.backbones.attention import MapCapture, average_maps
from erasure.backbones.map_layers import downsampling_of, map_layers
from erasure.errors import InputError
from erasure.guidance.a_star import AStar, AStarLoss
from erasure.guidance.attend_and_excite import AttendAndExcite
from erasure.guidance.attention import GuidedStep
from erasure.guidance.denoising import Denoising
from erasure.guidance.map_reading import Named
from erasure.guidance.steps import around_each_step
from erasure.losses.attention import segregation
from erasure.sampling import SamplingSettings, sample
from tests import tiny

PROMPTS = ["a cat and a dog", "a bird beside a cat"]
CONCEPTS = ("cat", "dog", "bird")


def latents(pipe: Any, prompts: list[str] | None = None, seeds: list[int] | None = None, **kwargs: Any) -> Tensor:
    prompts = PROMPTS if prompts is None else prompts
    return sample(
        pipe,
        prompts,
        seeds or list(range(len(prompts))),
        SamplingSettings(**{"steps": 3, "guidance_scale": 4.0, **kwargs}),
        output="latents",
    )


def narrow_sd15() -> UNet2DConditionModel:
    """Return a UNet with the blocks of Stable Diffusion 1.5, eight heads in each layer, and few channels."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        layers_per_block=2,
        cross_attention_dim=16,
    )


def meta_sdxl() -> UNet2DConditionModel:
    """Return a UNet with the blocks of Stable Diffusion XL, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(32, 64, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=16,
        )


def test_stable_diffusion_is_read_in_five_layers_of_eight_heads_at_sixteen_pixels() -> None:
    unet = narrow_sd15()
    layers = map_layers(unet)
    assert sorted(name.partition(".attentions")[0] for name in layers) == ["down_blocks.2"] * 2 + ["up_blocks.1"] * 3
    heads: list[int] = []

    def note(name: str, maps: Tensor) -> Tensor:
        heads.append(maps.shape[1])
        return maps

    capture = MapCapture(layers=layers, reduce=note, implementation="softmax")
    maps = capture.read_from(lambda: unet(torch.randn(1, 4, 64, 64), 500, torch.randn(1, 77, 16)))
    assert heads == [8] * 5
    found = average_maps(maps, 16, 16)
    assert found.shape == (1, 77, 16, 16)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 16, 16), rtol=0, atol=1e-5)


def test_other_sizes_and_shapes_of_picture_have_maps_of_their_own() -> None:
    unet = narrow_sd15()
    capture = AStarLoss().capture(unet)
    for height, width in ((64, 96), (72, 40), (36, 100)):
        size = torch.randn(1, 4, height, width)
        maps = capture.read_from(lambda size=size: unet(size, 500, torch.randn(1, 77, 16)))
        attention = AStarLoss().attention(capture, maps, size, unet)
        assert attention.shape == (1, 77, math.ceil(height / 4), math.ceil(width / 4))


def test_sdxl_is_read_on_the_way_down_and_in_the_middle() -> None:
    unet = meta_sdxl()
    layers = map_layers(unet)
    assert len(layers) == 30
    assert {name.partition(".attentions")[0] for name in layers} == {"down_blocks.2", "mid_block"}
    assert {downsampling_of(name, unet) for name in layers} == {4}


def test_named_layers_are_used_and_wrong_ones_named() -> None:
    unet = narrow_sd15()
    middle = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert list(map_layers(unet, [middle])) == [middle]
    with pytest.raises(InputError, match=r"expected cross-attention layers of the denoiser, got \['nowhere'\]"):
        map_layers(unet, ["nowhere"])
    with pytest.raises(InputError, match="expected layers of one size"):
        map_layers(unet, [middle, next(iter(map_layers(unet)))])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", [AStar, AttendAndExcite])
def test_switched_off_it_leaves_every_bit(family: str, kind: Any) -> None:
    pipe = tiny.FAMILIES[family]()
    before = latents(pipe)
    with kind(concepts=CONCEPTS, alpha=0.0).applied_to(pipe):
        assert torch.equal(latents(pipe), before)
    with kind(concepts=("rocket",)).applied_to(pipe):  # which no prompt names
        assert torch.equal(latents(pipe), before)
    with kind(concepts=CONCEPTS).applied_to(pipe):
        assert not torch.equal(latents(pipe), before)
    assert torch.equal(latents(pipe), before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_two_pictures_at_once_are_those_of_one_at_a_time(family: str, guidance_scale: float) -> None:
    pipe = tiny.FAMILIES[family]()
    with AStar(concepts=CONCEPTS, alpha=200.0).applied_to(pipe):
        both = latents(pipe, guidance_scale=guidance_scale)
        alone = latents(pipe, guidance_scale=guidance_scale, batch_size=1)
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4)


def test_a_row_without_concepts_is_left_alone_beside_one_with() -> None:
    pipe = tiny.sd1()
    plain = latents(pipe, ["a cat and a dog", "a tree"])
    with AStar(concepts=CONCEPTS, alpha=200.0).applied_to(pipe):
        guided = latents(pipe, ["a cat and a dog", "a tree"])
    assert torch.equal(guided[1], plain[1])
    assert not torch.equal(guided[0], plain[0])


def test_no_weight_is_touched_and_none_has_a_gradient() -> None:
    pipe = tiny.sd1()
    pipe.unet.requires_grad_(True)
    next(pipe.unet.parameters()).requires_grad_(False)
    asked = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    with AStar(concepts=CONCEPTS).applied_to(pipe):
        latents(pipe)
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())
    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == asked


def test_a_small_update_lowers_the_loss_as_its_gradient_says() -> None:
    """L(z - a g) - L(z) is -a |g|^2 to first order."""
    pipe = tiny.sd1().to(torch.float64)  # the fall is small beside the loss
    pipe.unet.requires_grad_(False)
    loss = AStarLoss()
    named = Named(names=("cat", "dog"), positions=[[2, 3], [8, 9]], end=12)
    capture = loss.capture(pipe.unet)
    wrong: list[float] = []

    def compare(call: Denoising) -> Tensor:
        def value(z: Tensor) -> Tensor:
            attention = loss.attention(capture, capture.read_from(lambda: call.predict(z)), z, pipe.unet)
            return segregation(loss.concept_maps(attention[0], named)[None])[0]

        with torch.enable_grad():
            z = call.latents.requires_grad_()
            (gradient,) = torch.autograd.grad(value(z), z)
        for alpha in (1.0, 100.0):
            fall = value(z.detach() - alpha * gradient) - value(z.detach())
            wrong.append(float(fall / (-alpha * gradient.square().sum())) - 1)
        return call.latents

    generator = torch.Generator().manual_seed(0)
    with around_each_step(pipe, rows=lambda: 1, before=compare):
        pipe("a cat and a dog", num_inference_steps=2, output_type="latent", generator=generator)
    assert len(wrong) == 4
    assert max(map(abs, wrong)) < 0.05


def test_the_loss_falls_in_nearly_every_step_of_a_trained_model() -> None:
    pipe, falls = tinyworld.load(), []
    for seed in range(3):
        steps: list[GuidedStep] = []
        refined: dict[str, Any] = {"refine_at": tuple(range(10)), "refine_updates": 2}
        guidance = AStar(concepts=("cat", "dog"), alpha=5.0, retention_scale=0.0, on_guided=steps.append, **refined)
        with guidance.applied_to(pipe):
            sample(pipe, ["a cat and a dog"], [seed], SamplingSettings(steps=10, guidance_scale=4.0), output="latents")
        falls += [step.last_loss[0] < step.loss[0] for step in steps]
    assert len(falls) == 30
    assert sum(falls) >= 29


def guided(pipe: Any, prompts: list[str] | None = None, n: int = 3, **settings: Any) -> list[GuidedStep]:
    """Return what was done at each step."""
    prompts = PROMPTS[:1] if prompts is None else prompts
    steps: list[GuidedStep] = []
    with AStar(concepts=CONCEPTS, on_guided=steps.append, **settings).applied_to(pipe):
        sample(pipe, prompts, range(len(prompts)), SamplingSettings(steps=n, guidance_scale=4.0), output="latents")
    return steps


def test_segregation_is_there_from_the_first_step_and_retention_from_the_second() -> None:
    steps = guided(tiny.sd1())
    assert [set(step.terms) for step in steps] == [{"segregation"}] + [{"segregation", "retention"}] * 2
    late = guided(tiny.sd1(), retention_from=2)
    assert [set(step.terms) for step in late] == [{"segregation"}] * 2 + [{"segregation", "retention"}]
    assert steps[0].maps[0].shape == (2, 8, 8)
    assert 0 < steps[0].overlap[0] <= 1
    assert all(step.loss[0] == pytest.approx(sum(row[0] for row in step.terms.values())) for step in steps)
    # Two concepts: between a half each, and one each plus their pair's half.
    assert all(1 <= step.loss[0] <= 2.5 for step in steps[1:])


def test_weights_and_pairs_scale_the_terms() -> None:
    prompt = ["a cat, a dog and a bird"]
    plain = guided(tiny.sd1(), prompt, n=1)[0]
    mean = guided(tiny.sd1(), prompt, n=1, pairs="mean")[0]
    half = guided(tiny.sd1(), prompt, n=1, segregation_scale=0.5)[0]
    assert mean.loss[0] == pytest.approx(plain.loss[0] / 3)
    assert half.loss[0] == pytest.approx(plain.loss[0] / 2)


def test_updates_are_clipped_to_a_share_of_the_latents() -> None:
    free = guided(tiny.sd1(), alpha=1e4)
    clipped = guided(tiny.sd1(), alpha=1e4, clip=0.05)
    assert max(step.moved[0] for step in free) > 0.06
    assert max(step.moved[0] for step in clipped) <= 0.05 + 1e-5


def test_the_size_of_the_update_falls_as_the_schedule_says() -> None:
    sqrt, half = AStarLoss(alpha=20.0), AStarLoss(alpha=20.0, schedule="half")
    assert sqrt.alpha_at(0, 50) == 20
    assert sqrt.alpha_at(49, 50) == pytest.approx(20 * 0.5**0.5)
    assert [AStarLoss(alpha=20.0, schedule="constant").alpha_at(step, 3) for step in range(3)] == [20, 20, 20]
    assert half.alpha_at(0, 51) == half.alpha_at(25, 51) == 20
    assert half.alpha_at(50, 51) == 0
    first = AStarLoss(steps_range=(0.0, 0.5))
    assert [first.alpha_at(step, 50) > 0 for step in (0, 24, 25, 49)] == [True, True, False, False]


def test_only_the_guided_part_of_the_schedule_is_guided() -> None:
    assert [step.step for step in guided(tiny.sd1(), n=4, steps_range=(0.25, 0.75))] == [1, 2]


def test_a_refined_step_is_repeated_until_its_loss_is_low_enough() -> None:
    pipe = tiny.sd1()
    steps = guided(pipe, refine_at=(1,), refine_updates=4)
    assert steps[0].updates == [1]
    assert 1 <= steps[1].updates[0] <= 4
    low = AStarLoss().low_enough
    seg, ret = torch.tensor(0.2), torch.tensor(1.2)
    assert low({"segregation": seg}, None, 2, 0)
    assert not low({"segregation": seg + 0.2}, None, 2, 0)
    assert low({"segregation": 3 * (seg + 0.05)}, None, 3, 0)  # three pairs
    falling = {"segregation": seg, "retention": ret}
    assert not low(falling, {"segregation": seg, "retention": ret * 1.1}, 2, 1)
    assert low(falling, {"segregation": seg, "retention": ret * 1.001}, 2, 1)
    excite = AttendAndExcite(concepts=CONCEPTS)
    assert excite.low_enough({"neglect": torch.tensor(0.49)}, None, 2, 10)
    assert not excite.low_enough({"neglect": torch.tensor(0.51)}, None, 2, 10)


def official_updates(low: Callable[[int], bool], most: int) -> int:
    """Return the number of updates in a step that Attend-and-Excite's code refines; `low(i)` of its i-th evaluation."""
    evaluated = updates = 0
    met = low(evaluated)
    if not met:
        while not met:
            met = low(updates)  # the loss that is looked at is that before the update
            updates += 1
            if updates >= most:
                break
    return updates + 1  # the update of every guided step


@dataclass(frozen=True, kw_only=True)
class Scripted(AttendAndExcite):
    """Attend-and-Excite whose losses are low from a given evaluation on, by the weakest concept's name."""

    low_from: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def terms(self, maps: Any, masks: Any, named: Named) -> Any:
        self.seen.append(named.names[0])
        return {"neglect": super().terms(maps, masks, named)["neglect"], named.names[0]: torch.zeros(())}

    def low_enough(self, terms: Any, before: Any, concepts: int, step: int) -> bool:
        [name] = set(terms) - {"neglect"}
        return self.seen.count(name) - 1 >= self.low_from[name]


@pytest.mark.parametrize(("cat", "bird"), [(0, 1), (2, 19), (20, 99), (3, 0)])
def test_refined_steps_make_the_updates_of_the_official_code_for_each_image_by_itself(cat: int, bird: int) -> None:
    steps: list[GuidedStep] = []
    low_from = {"cat": cat, "bird": bird}
    guidance = Scripted(concepts=("cat", "bird"), low_from=low_from, on_guided=steps.append, alpha=1e-3)
    prompts = ["a cat and a hat", "a bird on a tree"]
    with guidance.applied_to(tiny.sd1()) as pipe:
        sample(pipe, prompts, [0, 1], SamplingSettings(steps=2, guidance_scale=4.0), output="latents")
    [refined] = steps
    expected = [official_updates(lambda i, first=first: i >= first, 20) for first in (cat, bird)]
    assert refined.updates == expected
    assert {0: 1, 1: 3, 2: 4, 3: 5, 19: 21, 20: 21, 99: 21}[cat] == expected[0]


def test_a_refined_image_is_the_same_in_any_batch() -> None:
    settings: dict[str, Any] = {"concepts": CONCEPTS, "peaks": (0.0162, 0.5, 0.8), "refine_updates": 3}
    counts: list[list[int]] = []
    with AttendAndExcite(**settings, on_guided=lambda step: counts.append(step.updates)).applied_to(tiny.sd1()) as pipe:
        together = latents(pipe)
        alone = torch.cat([latents(pipe, [prompt], seeds=[i]) for i, prompt in enumerate(PROMPTS)])
    assert (
        counts[0] == [*counts[2], *counts[4]] == [4, 1]
    )  # two guided steps a call; one image's peak is high from the start
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_a_layout_is_kept_to_from_the_first_step_and_resized() -> None:
    pipe = tiny.sd1()
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    steps: list[GuidedStep] = []
    row = Named(names=("cat", "dog"), positions=[[2, 3, 4], [10, 11, 12]], end=14, layout={0: left})
    with AStarLoss(alpha=50.0).guiding(pipe, lambda: [row], on_guided=steps.append):
        pipe("a cat and a dog", num_inference_steps=2, output_type="latent")
    assert [set(step.terms) for step in steps] == [{"segregation", "retention"}] * 2
    assert 0.5 <= steps[0].terms["retention"][0] <= 1  # of the concept that has a place
    assert 1 <= steps[1].terms["retention"][0] <= 2  # the other has a region of its own by now


@pytest.mark.parametrize("normalise", ["softmax_100", "raw", "max", "sum"])
def test_maps_are_normalised_as_named(normalise: Any) -> None:
    attention = torch.rand(77, 8, 8).softmax(0)
    named = Named(names=("cat", "dog"), positions=[[2, 3], [7]], end=9)
    maps = AStarLoss(normalise=normalise, smooth=False).concept_maps(attention, named)
    chosen = torch.stack([attention[[2, 3]].mean(0), attention[7]])
    expected = {
        "raw": chosen,
        "max": chosen / chosen.amax((1, 2), keepdim=True),
        "sum": chosen / chosen.sum((1, 2), keepdim=True),
    }
    competing = (100 * attention[1:-1]).softmax(0)
    expected["softmax_100"] = torch.stack([competing[[1, 2]].mean(0), competing[6]])
    torch.testing.assert_close(maps, expected[normalise])
    if normalise == "softmax_100":
        prompt = AStarLoss(competitors="prompt", smooth=False).concept_maps(attention, named)
        torch.testing.assert_close(prompt[1], (100 * attention[1:9]).softmax(0)[6])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_in_a_half_precision_model(dtype: torch.dtype) -> None:
    pipe = tiny.sd1().to(dtype)
    steps = guided(pipe, alpha=200.0)
    assert all(step.maps[0].dtype == torch.float32 for step in steps)
    assert all(math.isfinite(step.loss[0]) and step.moved[0] > 0 for step in steps)


def test_the_pipelines_own_call_is_guided_as_well_and_embeddings_alone_are_refused() -> None:
    pipe, steps = tiny.sd1(), []
    with AStar(concepts=CONCEPTS, on_guided=steps.append).applied_to(pipe):
        pipe(PROMPTS, num_images_per_prompt=2, num_inference_steps=2, output_type="latent")
        assert [len(step.loss) for step in steps] == [4, 4]
        embeds = torch.randn(1, 77, 32)
        with pytest.raises(InputError, match="expected prompts, got their embeddings"):
            pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=1, output_type="latent")
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha: expected a number of at least 0, got -1.0"),
        ({"clip": 0.0}, "clip: expected a number > 0 or None, got 0.0"),
        ({"steps_range": (0.6, 0.5)}, "steps_range: expected two shares from 0 to 1, in order"),
        ({"region_threshold": 0.0}, "region_threshold: expected a number in"),
        ({"retention_scale": -1.0}, "retention_scale: expected a number of at least 0"),
        ({"refine_updates": 0}, "refine_updates: expected at least 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AStar(concepts=CONCEPTS, **settings)


def test_a_word_that_is_no_choice_is_named() -> None:
    loss = AStarLoss()
    object.__setattr__(loss, "normalise", "max2")  # the tests' type checks would refuse it before
    with pytest.raises(InputError, match="normalise: expected 'softmax_100' or 'raw' or 'max' or 'sum', got 'max2'"):
        loss.__post_init__()


def test_wrong_concepts_are_named() -> None:
    pipe = tiny.sd1()
    with (
        pytest.raises(InputError, match=r"expected words of the prompts, got \(\)"),
        AStar(concepts=()).applied_to(pipe),
    ):
        pass
    with (
        AStar(concepts=("cat", "a cat")).applied_to(pipe),
        pytest.raises(InputError, match="expected concepts of tokens of their own in 'a cat and a dog'"),
    ):
        latents(pipe)
    with pytest.raises(InputError, match="peaks: expected as many as refine_at"):
        AttendAndExcite(concepts=CONCEPTS, peaks=(0.5,))
