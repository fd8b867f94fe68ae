"""Guidances by text in the loops of every family: one call for both predictions, or two."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.erasers import make_eraser
from erasure.errors import InputError
from erasure.guidance.a_star import AStar
from erasure.guidance.adavd import AdaVDGuidance
from erasure.guidance.denoising import Denoising
from erasure.guidance.negative_prompt import NegativePromptGuidance
from erasure.guidance.sld import SafeLatentDiffusion
from erasure.guidance.steps import Stepping, around_each_step
from erasure.sampling import SamplingSettings, sample
from erasure.training.context import FitContext
from tests import tiny, tiny_families

ONE_CALL = ("pixart", "sana", "aura-flow", "hidream", "z-image")
TWO_CALLS = ("cogview4", "lumina2", "qwen-image", "chroma", "flux2-klein", "flux")
PROMPTS = ["a cat and a dog", "a tree"]
NOTHING = {"threshold": -1e9, "warmup": 0}
SCALE = 4.0


def latents(pipe: Any, prompts: list[str] = PROMPTS, *, scale: float = SCALE, **more: Any) -> Tensor:
    settings = SamplingSettings(steps=2, guidance_scale=scale, **more)
    return sample(pipe, prompts, list(range(len(prompts))), settings, output="latents")


def own_call(pipe: Any, negative: str) -> Tensor:
    """Return the latents of the pipeline's own call, where it takes a negative prompt."""
    takes = inspect.signature(type(pipe).__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in takes else "guidance_scale"
    further = {"negative_prompt": negative} if "negative_prompt" in takes else {}
    further |= {"use_resolution_binning": False} if "use_resolution_binning" in takes else {}
    backbone = backbone_of(pipe)
    channels, rows, columns = backbone.latent_shape()
    by_sample = backbone.call_arguments(torch.zeros(1, channels, rows, columns), backbone.encode(["a"]), None, 1.0)
    further |= {"text_encoder_out_layers": (1, 2, 3)} if "text_encoder_out_layers" in takes else {}
    further |= {name: by_sample[name] for name in ("max_sequence_length",) if name in by_sample}
    return pipe(
        prompt="a cat and a dog",
        height=rows * pipe.vae_scale_factor,
        width=columns * pipe.vae_scale_factor,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **{scale: SCALE},
        **further,
    ).images


@pytest.mark.parametrize("family", [*ONE_CALL, *TWO_CALLS])
def test_texts_reach_the_loop_and_nothing_else_is_changed(family: str) -> None:
    pipe = tiny_families.built(family) if family in tiny_families.BUILDERS else tiny.JOINT[family]()
    assert (backbone_of(pipe).loop.unconditional == "two calls") == (family in TWO_CALLS)
    plain, own = latents(pipe), latents(pipe, negative_prompt="cat, gun")
    assert not torch.equal(plain, own)
    with NegativePromptGuidance(concepts=("cat", "gun")).applied_to(pipe):
        torch.testing.assert_close(latents(pipe), own, atol=1e-4, rtol=1e-4)
    with NegativePromptGuidance(concepts=("cat", "gun"), only_named=True).applied_to(pipe):
        inside = latents(pipe)
        of_the_call = own_call(pipe, " ")
    torch.testing.assert_close(inside[0], own[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inside[1], plain[1], atol=1e-5, rtol=1e-5)
    if family == "flux2-klein":  # takes no negative prompt
        assert not torch.equal(of_the_call, own_call(pipe, " "))
    else:
        torch.testing.assert_close(of_the_call, own_call(pipe, "cat, gun"), atol=1e-4, rtol=1e-4)
    with SafeLatentDiffusion(concepts=("cat",), **NOTHING).applied_to(pipe):
        assert torch.equal(latents(pipe), plain)
    with SafeLatentDiffusion(concepts=("gun",), warmup=0).applied_to(pipe):
        assert not torch.equal(latents(pipe), plain)
    assert torch.equal(latents(pipe), plain)
    for name in (NegativePromptGuidance, SafeLatentDiffusion):
        with (
            name(concepts=("cat",)).applied_to(pipe),
            pytest.raises(InputError, match="expected classifier-free guidance, got a loop without it") as caught,
        ):
            latents(pipe, scale=1.0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["pixart", "hidream", "z-image", "cogview4", "lumina2"])
def test_the_push_is_the_formula(family: str) -> None:
    """The guided prediction of the second step, from the denoiser's three own predictions."""
    pipe = tiny_families.built(family)
    backbone = backbone_of(pipe)
    seen: list[tuple[Denoising, Stepping]] = []

    def note(call: Denoising, step: Stepping) -> Tensor:
        seen.append((call, step))
        return step.previous

    sld = SafeLatentDiffusion(concepts=("cat",), warmup=0, scale=50.0, momentum_scale=0.0)
    with sld.applied_to(pipe), around_each_step(pipe, rows=lambda: 1, stepped=note, needs="guidance"):
        latents(pipe, PROMPTS[:1])
    [(_, before), (call, step)] = seen
    timestep = call.timestep[:1]
    texts = (backbone.unconditional(), backbone.encode(PROMPTS[:1]), backbone.encode(["cat"]))
    with torch.no_grad():
        free, prompted, unwanted = (backbone.predict(before.previous, timestep, states) for states in texts)
    share = torch.tensor(1.0) if family == "pixart" else 1 - timestep / 1000
    assert 0 < share <= 1
    away, _ = sld.force(share * free, share * prompted, [share * unwanted], torch.zeros_like(free))
    assert away.abs().max() > 1e-3
    pushed = prompted - away / share
    expected = free + SCALE * (pushed - free)
    if family == "lumina2":  # brings it to the size of the prompt's
        expected = expected * (pushed.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(step.prediction, expected, atol=2e-4, rtol=2e-4)


def test_a_guidance_distilled_model_is_refused_in_one_line() -> None:
    for pipe, match in ((tiny.flux(guidance_embeds=True), "got a loop without it"), (tiny_families.flux2(), "written")):
        with pytest.raises(InputError, match=match) as caught, SafeLatentDiffusion(concepts=("cat",)).applied_to(pipe):
            latents(pipe, PROMPTS[:1])
        assert "\n" not in str(caught.value)
    context = FitContext(backbone=backbone_of(tiny.flux(guidance_embeds=True)))
    for name in ("negative-prompt", "sld"):  # nothing is recorded that no image could be made with
        with pytest.raises(InputError, match="got flux with an embedded guidance") as caught:
            make_eraser(name).fit([Concept(target="cat")], context)
        assert "\n" not in str(caught.value)


def test_two_calls_are_told_apart_by_their_order_where_the_latents_are_copied() -> None:
    pipe = tiny.flux()
    with AStar(concepts=("cat", "dog")).applied_to(pipe), NegativePromptGuidance(concepts=("gun",)).applied_to(pipe):
        expected = latents(pipe, PROMPTS[:1])
    assert not torch.equal(expected, latents(pipe, PROMPTS[:1]))

    def copied(_: object, args: Any, kwargs: dict[str, Any]) -> Any:
        return tuple(arg.clone() for arg in args), {
            k: v.clone() if k == "hidden_states" else v for k, v in kwargs.items()
        }

    pipe.transformer.register_forward_pre_hook(copied, with_kwargs=True)
    with AStar(concepts=("cat", "dog")).applied_to(pipe), NegativePromptGuidance(concepts=("gun",)).applied_to(pipe):
        assert torch.equal(latents(pipe, PROMPTS[:1]), expected)


def test_a_loop_that_copies_the_first_of_two_predictions_is_refused() -> None:
    pipe = tiny_families.built("cogview4")
    with SafeLatentDiffusion(concepts=("cat",), warmup=0).applied_to(pipe):
        handle = pipe.transformer.register_forward_hook(lambda _, args, output: (output[0].clone(),))
        with pytest.raises(InputError, match="got one that copies it"):
            latents(pipe, PROMPTS[:1])
        handle.remove()


def test_the_first_text_of_a_call_is_its_prompt_after_a_call_that_failed() -> None:
    pipe = tiny.flux()
    with NegativePromptGuidance(concepts=("cat",), only_named=True).applied_to(pipe):
        with pytest.raises(ValueError, match="list of generators"):
            pipe("a tree", height=16, width=16, generator=[torch.Generator()] * 2)
        inside = own_call(pipe, " ")
    assert not torch.equal(inside, own_call(pipe, " "))


def test_a_pipeline_that_checks_no_inputs_has_its_prompts_and_images_counted() -> None:
    pipe = tiny_families.built("z-image")
    names = NegativePromptGuidance(concepts=("cat",), only_named=True)

    def images(prompt: str | None = "a cat", **more: Any) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        sizes = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent"}
        return pipe(prompt, num_images_per_prompt=2, generator=generators, **sizes, **more).images

    expected = images(guidance_scale=SCALE, negative_prompt="cat")
    with names.applied_to(pipe):
        torch.testing.assert_close(images(guidance_scale=SCALE), expected, atol=1e-4, rtol=1e-4)
        with pytest.raises(InputError, match="got a loop without it"):
            images(guidance_scale=0.0)
        states = [torch.randn(5, tiny_families.WIDTH)]
        with pytest.raises(InputError, match="got their embeddings"):
            images(None, guidance_scale=SCALE, prompt_embeds=states, negative_prompt_embeds=states)


def test_a_scheduler_that_can_scale_its_input_does_not_hide_the_loop() -> None:
    pipe = tiny.sd3()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    own = latents(pipe, negative_prompt="cat")
    with NegativePromptGuidance(concepts=("cat",)).applied_to(pipe):
        torch.testing.assert_close(latents(pipe), own)


def test_texts_of_other_lengths_are_refused_where_no_mask_tells_their_padding() -> None:
    pipe = tiny_families.built("cogview4")
    names = NegativePromptGuidance(concepts=("cat", "a name that takes more tokens"), only_named=True)
    with names.applied_to(pipe), pytest.raises(InputError, match="expected texts of one length") as caught:
        pipe(PROMPTS, height=16, width=16, num_inference_steps=1, output_type="latent")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["pixart", "sana"])
def test_values_of_cross_attention_lose_a_concept_in_transformers(family: str) -> None:
    pipe = tiny_families.built(family)
    layer = pipe.transformer.transformer_blocks[0].attn2.to_v
    seen: list[Tensor] = []

    def values(**settings: Any) -> Tensor:
        seen.clear()
        with AdaVDGuidance(concepts=("cat",), **settings).applied_to(pipe):
            handle = layer.register_forward_hook(lambda _, args, output: seen.append(output.clone()))
            latents(pipe, ["a cat"])
            handle.remove()
        return seen[0]

    plain, changed = values(strength=0.0), values(shifted=False)
    assert torch.equal(changed[0], plain[0])  # the unconditional row
    states = backbone_of(pipe).read(["cat"])
    target = layer.weight @ states.states[0, states.word_positions(0, "cat")[-1]]
    start = int(family == "sana")  # T5 has no start of text
    assert torch.equal(changed[1, :start], plain[1, :start])
    assert ((plain[1, start:] - layer.bias) @ target).abs().max() > 1e-2
    torch.testing.assert_close(
        (changed[1, start:] - layer.bias) @ target, torch.zeros(len(plain[1]) - start), atol=1e-3, rtol=0
    )
