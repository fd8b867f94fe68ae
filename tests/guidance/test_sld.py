"""SLD and the negative prompt: the formulas of their sources, at every scale of guidance."""

from typing import Any

import pytest
import torch
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.erasers import make_eraser
from erasure.errors import InputError
from erasure.guidance.denoising import Denoising
from erasure.guidance.negative_prompt import NegativePromptGuidance
from erasure.guidance.sld import SafeLatentDiffusion
from erasure.guidance.steps import Stepping, around_each_step
from erasure.guidance.texts import joined_names
from erasure.sampling import SamplingSettings, sample
from tests import tiny

FREE, PROMPTED, UNWANTED = (
    torch.tensor(row).view(1, 4, 1, 1)
    for row in ([0.0, 0.1, 0.2, -0.1], [0.1, 0.1005, 0.1, 0.3], [0.05, 0.1004, 0.3, -0.2])
)


def row(*values: float) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def latents(pipe: Any, prompts: list[str], *, scale: float = 4.0, steps: int = 3, **more: Any) -> Tensor:
    settings = SamplingSettings(steps=steps, guidance_scale=scale, **more)
    return sample(pipe, prompts, list(range(len(prompts))), settings, output="latents")


def test_two_steps_of_the_specification() -> None:
    sld = SafeLatentDiffusion(concepts=("cat",), warmup=0)
    away, momentum = sld.force(FREE, PROMPTED, [UNWANTED], torch.zeros(1, 4, 1, 1))
    torch.testing.assert_close(away, row(0, 0.00004, 0.1, 0), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(momentum, row(0, 0.000024, 0.06, 0), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(
        FREE + 7.5 * (PROMPTED - FREE - away), row(0.75, 0.10345, -1.3, 2.9), atol=1e-4, rtol=1e-4
    )
    away, momentum = sld.force(FREE, PROMPTED, [UNWANTED], momentum)
    torch.testing.assert_close(away, row(0, 0.0000472, 0.118, 0), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(momentum, row(0, 0.00003792, 0.0948, 0), atol=1e-6, rtol=1e-3)


def test_reductions() -> None:
    nothing = torch.zeros(1, 4, 1, 1)
    same, _ = SafeLatentDiffusion(concepts=("cat",)).force(FREE, PROMPTED, [PROMPTED], nothing)
    off, _ = SafeLatentDiffusion(concepts=("cat",), scale=0.0).force(FREE, PROMPTED, [UNWANTED], nothing)
    never, _ = SafeLatentDiffusion(concepts=("cat",), threshold=-1e9).force(FREE, PROMPTED, [UNWANTED], nothing)
    assert not any(each.any() for each in (same, off, never))
    full = SafeLatentDiffusion(concepts=("cat",), scale=1e9, threshold=1e9, momentum_scale=0.0)
    away, _ = full.force(FREE, PROMPTED, [UNWANTED], nothing)
    torch.testing.assert_close(FREE + 7.5 * (PROMPTED - FREE - away), row(0.375, 0.10075, -1.3, 3.65))
    negative = UNWANTED + 7.5 * (PROMPTED - UNWANTED)
    torch.testing.assert_close(negative, row(0.425, 0.10115, -1.2, 3.55))
    torch.testing.assert_close(FREE + 7.5 * (PROMPTED - FREE - away), negative - (UNWANTED - FREE))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])
@pytest.mark.parametrize("scale", [1.5, 7.5])
def test_a_step_is_the_formula_at_any_scale(family: str, scale: float) -> None:
    """The guided prediction of one step, from the denoiser's three own predictions."""
    pipe = tiny.EVERY[family]()
    backbone = backbone_of(pipe)
    images: list[Tensor] = []
    seen: list[tuple[Denoising, Stepping]] = []

    def scaled(call: Denoising) -> Tensor:
        images.append(call.scaled(call.latents))
        return call.latents

    def note(call: Denoising, step: Stepping) -> Tensor:
        seen.append((call, step))
        return step.previous

    sld = SafeLatentDiffusion(concepts=("cat",), warmup=0, scale=50.0)
    with sld.applied_to(pipe), around_each_step(pipe, rows=lambda: 1, before=scaled, stepped=note, needs="guidance"):
        latents(pipe, ["a cat and a dog"], scale=scale)
    index = int(family == "sd3")  # its first step is from pure noise
    (call, step), image = seen[index], images[index]
    timestep = call.timestep[:1] if family == "sd3" else call.timestep
    texts = (backbone.unconditional(), backbone.encode(["a cat and a dog"]), backbone.encode(["cat"]))
    with torch.no_grad():
        outputs = [backbone.predict(image, timestep, states) for states in texts]
    factor = torch.tensor(1.0)
    if family == "sd2":
        factor = backbone.schedule.alphas_cumprod[timestep.long()].sqrt()
    if family == "sd3":
        factor = 1 - timestep / 1000
        assert 0 < factor < 1
    noises = [factor * output for output in outputs]
    away, _ = sld.force(noises[0], noises[1], [noises[2]], torch.zeros_like(image))
    expected = outputs[0] + scale * (outputs[1] - away / factor - outputs[0])
    torch.testing.assert_close(step.prediction, expected, atol=2e-4, rtol=2e-4)


def test_the_warm_up_leaves_every_bit_and_collects_the_momentum() -> None:
    pipe = tiny.sd1()
    plain = latents(pipe, ["a cat"])
    with SafeLatentDiffusion(concepts=("cat",), warmup=3).applied_to(pipe):
        assert torch.equal(latents(pipe, ["a cat"]), plain)
    made = []
    for kept in (0.0, 0.9):
        sld = SafeLatentDiffusion(concepts=("dog",), warmup=2, momentum=kept, threshold=1.0)
        with sld.applied_to(pipe):
            made.append(latents(pipe, ["a cat"]))
    assert not torch.equal(*made)


@pytest.mark.parametrize("name", ["sld", "negative-prompt"])
def test_images_of_a_batch_do_not_meet(name: str) -> None:
    pipe = tiny.sd1()
    kind: Any = {"sld": SafeLatentDiffusion, "negative-prompt": NegativePromptGuidance}[name]
    with kind(concepts=("cat",), **kind.quick).applied_to(pipe):
        both = latents(pipe, ["a cat", "a tree"])
        first = latents(pipe, ["a cat"])
    torch.testing.assert_close(both[:1], first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "sd3"])
def test_the_negative_prompt_is_the_pipelines_own(family: str) -> None:
    pipe = tiny.EVERY[family]()
    own = latents(pipe, ["a cat and a dog"], negative_prompt="cat, gun")
    with NegativePromptGuidance(concepts=("cat", "gun")).applied_to(pipe):
        torch.testing.assert_close(latents(pipe, ["a cat and a dog"]), own)


def test_names_that_do_not_fit_make_several_texts_and_their_mean() -> None:
    pipe = tiny.sd1()
    backbone = backbone_of(pipe)
    names = tuple(f"abcdefgh {letter}" for letter in "abcdefghijkl")  # a token a letter
    texts = joined_names(names, backbone.encode)
    assert ", ".join(prompt for text in texts for prompt in text.prompts) == ", ".join(names)
    assert len(texts) > 1
    assert not any(text.is_cut(0) for text in texts)
    with NegativePromptGuidance(concepts=names).applied_to(pipe):
        several = latents(pipe, ["a cat"])
    with NegativePromptGuidance(concepts=names[:2]).applied_to(pipe):
        assert not torch.equal(several, latents(pipe, ["a cat"]))
    with pytest.raises(InputError, match="expected names that the model reads whole, got 'aaa"):
        joined_names(["a" * 100], backbone.encode)


@pytest.mark.parametrize("name", ["sld", "negative-prompt"])
def test_sampling_without_guidance_is_refused(name: str) -> None:
    pipe = tiny.sd1()
    kind: Any = {"sld": SafeLatentDiffusion, "negative-prompt": NegativePromptGuidance}[name]
    with kind(concepts=("cat",)).applied_to(pipe), pytest.raises(InputError, match="expected classifier-free") as error:
        latents(pipe, ["a cat"], scale=1.0)
    assert "\n" not in str(error.value)


def test_the_published_strengths() -> None:
    values = {
        strength: (made.warmup, made.scale, made.threshold, made.momentum_scale, made.momentum)
        for strength in ("weak", "medium", "strong", "max")
        for made in [make_eraser("sld", strength=strength)]
    }
    assert values == {
        "weak": (15, 20, 0, 0, 0),
        "medium": (10, 1000, 0.01, 0.3, 0.4),
        "strong": (7, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1, 0.5, 0.7),
    }
    assert make_eraser("sld", strength="max", warmup=3).warmup == 3
    assert make_eraser("sld") == make_eraser("sld", strength="medium")
    for wrong in ({"momentum": 1.0}, {"scale": -1.0}, {"warmup": -1}):
        with pytest.raises(InputError, match=rf"sld.{next(iter(wrong))}: expected"):
            make_eraser("sld", **wrong)
        with pytest.raises(InputError, match=rf"sld.{next(iter(wrong))}: expected"):
            SafeLatentDiffusion(concepts=("cat",), **wrong)
