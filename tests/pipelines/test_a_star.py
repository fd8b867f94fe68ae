"""A-STAR as diffusers pipelines."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from torch import Tensor

from erasure.errors import InputError
from erasure.guidance.attention import GuidedStep
from erasure.pipelines import a_star
from tests import tiny

PROMPT = "a cat and a tabby dog"
TEXT = {
    "sd1": (a_star.StableDiffusionAStarPipeline, StableDiffusionPipeline),
    "sd2": (a_star.StableDiffusionAStarPipeline, StableDiffusionPipeline),
    "sdxl": (a_star.StableDiffusionXLAStarPipeline, StableDiffusionXLPipeline),
}
PICTURE = [
    (tiny.sd1, a_star.StableDiffusionAStarImg2ImgPipeline, StableDiffusionImg2ImgPipeline),
    (tiny.sdxl, a_star.StableDiffusionXLAStarImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline),
    (tiny.sd1, a_star.StableDiffusionAStarInpaintPipeline, StableDiffusionInpaintPipeline),
    (tiny.sdxl, a_star.StableDiffusionXLAStarInpaintPipeline, StableDiffusionXLInpaintPipeline),
]


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided_and_plain(family: str, vocabulary: tiny.Vocabulary = "bytes") -> tuple[Any, Any]:
    pipe = tiny.FAMILIES[family](vocabulary=vocabulary)
    guided, plain = TEXT[family]
    return quiet(guided.from_pipe(pipe)), quiet(plain.from_pipe(pipe))


def run(pipe: Any, prompt: Any = PROMPT, **kwargs: Any) -> Tensor:
    n = (1 if isinstance(prompt, str) else len(prompt)) * kwargs.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(n)]
    options = {"num_inference_steps": 3, "output_type": "latent", "generator": generators, **kwargs}
    return pipe(prompt, **options).images


@pytest.mark.parametrize("family", TEXT)
def test_switched_off_it_is_the_base_pipeline_bit_for_bit(family: str) -> None:
    guided, plain = guided_and_plain(family)
    expected = run(plain)
    assert torch.equal(run(guided), expected)
    assert torch.equal(run(guided, concepts=["cat", "dog"], alpha=0.0), expected)
    moved = run(guided, concepts=["cat", "dog"])
    assert not torch.equal(moved, expected)
    assert torch.equal(run(guided, concepts=["cat", "dog"]), moved)
    assert torch.equal(run(plain), expected)  # they share their models


@pytest.mark.parametrize("family", TEXT)
def test_its_call_takes_what_the_base_takes_in_the_same_order_and_more(family: str) -> None:
    guided, plain = TEXT[family]
    base = list(inspect.signature(plain.__call__).parameters)
    own = list(inspect.signature(guided.__call__).parameters)
    assert [name for name in own if name in base] == base
    assert {"concepts", "token_indices", "layout", "alpha", "retention_scale", "normalise"} <= set(own)


@pytest.mark.parametrize("family", TEXT)
def test_concepts_are_found_in_real_tokens_split_ones_included(family: str) -> None:
    guided, _ = guided_and_plain(family, "clip")
    steps: list[GuidedStep] = []
    words = run(guided, "a photo of a stegosaurus and a tabby cat", concepts=["stegosaurus", "tabby cat"])
    tokens = guided.tokenizer("a photo of a stegosaurus and a tabby cat").input_ids
    split = guided.tokenizer.convert_ids_to_tokens(tokens)
    first = [at for at, token in enumerate(split) if at >= 5 and token != "and</w>"]
    dinosaur = [at for at in first if at < split.index("and</w>")]
    assert len(dinosaur) > 1
    end = len(tokens) - 1
    positions = run(
        guided,
        "a photo of a stegosaurus and a tabby cat",
        token_indices=[dinosaur, [end - 2, end - 1]],
        on_guided=steps.append,
    )
    assert torch.equal(words, positions)
    assert steps[0].maps[0].shape[0] == 2


@pytest.mark.parametrize("family", TEXT)
def test_batches_and_several_pictures_a_prompt_are_those_of_one_at_a_time(family: str) -> None:
    guided, _ = guided_and_plain(family)
    prompts, concepts = [PROMPT, "a bird, a fish and a boat"], [["cat", "dog"], ["bird", "fish", "boat"]]
    settings = {"alpha": 200.0}
    both = run(guided, prompts, concepts=concepts, **settings)
    for at in range(2):
        alone = run(guided, prompts[at], concepts=concepts[at], generator=torch.Generator().manual_seed(at), **settings)
        torch.testing.assert_close(both[at : at + 1], alone, rtol=1e-4, atol=1e-4)
    several = run(guided, PROMPT, concepts=["cat", "dog"], num_images_per_prompt=2, **settings)
    torch.testing.assert_close(several[:1], both[:1], rtol=1e-4, atol=1e-4)


def test_embeddings_take_token_positions() -> None:
    guided, _ = guided_and_plain("sd1")
    embeds, negative = guided.encode_prompt(PROMPT, "cpu", 1, True)
    expected = run(guided, token_indices=[3, [9, 10]])
    given = guided(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        token_indices=[3, [9, 10]],
        num_inference_steps=3,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert torch.equal(given, expected)
    with pytest.raises(InputError, match="expected a prompt to find them in"):
        guided(prompt_embeds=embeds, negative_prompt_embeds=negative, concepts=["cat"])


@pytest.mark.parametrize(("build", "guided", "plain"), PICTURE)
def test_image_to_image_and_inpainting_follow(build: Any, guided: Any, plain: Any) -> None:
    pipe = build()
    guided, plain = quiet(guided.from_pipe(pipe)), quiet(plain.from_pipe(pipe))
    picture = Image.new("RGB", (16, 16), "gray")
    inputs: dict[str, Any] = {"image": picture, "strength": 0.7, "num_inference_steps": 5}
    if "mask_image" in inspect.signature(plain.__call__).parameters:
        inputs |= {"mask_image": Image.new("L", (16, 16), 255), "height": 16, "width": 16}
    expected = run(plain, **inputs)
    assert torch.equal(run(guided, **inputs), expected)
    assert torch.equal(run(guided, concepts=["cat", "dog"], alpha=0.0, **inputs), expected)
    steps: list[GuidedStep] = []
    assert not torch.equal(run(guided, concepts=["cat", "dog"], on_guided=steps.append, **inputs), expected)
    assert steps[0].step > 0  # the loop begins in the middle of the schedule


def test_schedulers_callbacks_and_output_types_are_the_base_pipelines() -> None:
    guided, _ = guided_and_plain("sd1")
    guided.scheduler = EulerDiscreteScheduler.from_config(guided.scheduler.config)
    seen: list[int] = []

    def note(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return {"latents": 0 * tensors["latents"]} if step == 2 else {}

    latents = run(guided, concepts=["cat", "dog"], callback_on_step_end=note)
    assert seen == [0, 1, 2]
    assert not latents.any()
    pictures = run(guided, concepts=["cat", "dog"], output_type="pil")
    assert pictures[0].size == (16, 16)
    plain = guided(PROMPT, concepts=["cat"], num_inference_steps=1, output_type="latent", return_dict=False)
    assert isinstance(plain, tuple)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_guided(dtype: torch.dtype) -> None:
    guided, plain = guided_and_plain("sd1")
    guided.to(dtype)
    moved = run(guided, concepts=["cat", "dog"], alpha=500.0)
    assert moved.dtype == dtype
    assert torch.isfinite(moved).all()
    assert not torch.equal(moved, run(plain))


def test_a_layout_may_be_boxes_pictures_or_arrays() -> None:
    guided, _ = guided_and_plain("sd1")
    box = run(guided, concepts=["cat", "dog"], layout=[(0, 0, 0.5, 1), None])
    half = np.zeros((32, 32))
    half[:, :16] = 1
    assert torch.equal(run(guided, concepts=["cat", "dog"], layout=[half, None]), box)
    assert torch.equal(run(guided, concepts=["cat", "dog"], layout={"cat": torch.from_numpy(half)}), box)
    picture = Image.fromarray((255 * half).astype(np.uint8))
    assert torch.equal(run(guided, concepts=["cat", "dog"], layout={"cat": picture}), box)
    assert not torch.equal(run(guided, concepts=["cat", "dog"]), box)
    both = run(guided, [PROMPT] * 2, concepts=[["cat"], ["dog"]], layout=[[(0, 0, 0.5, 1)], {"dog": half}])
    assert both.shape[0] == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"concepts": ["cat", "rocket"]}, "expected words of the prompt 'a cat and a tabby dog', got 'rocket'"),
        ({"concepts": "cat"}, "concepts: expected a list, got 'cat'"),
        ({"concepts": []}, "concepts: expected a list"),
        ({"concepts": [3]}, "Positions go into token_indices"),
        ({"concepts": ["cat", "a cat"]}, "expected concepts of tokens of their own"),
        ({"concepts": ["cat"], "token_indices": [3]}, "expected either them or concepts, got both"),
        ({"token_indices": [0]}, "token_indices: expected positions from 1 to"),
        ({"token_indices": [76]}, "token_indices: expected positions from 1 to"),
        ({"token_indices": [3, 3]}, "expected each concept once"),
        ({"token_indices": [[3, 4], 4]}, "expected concepts of tokens of their own"),
        ({"alpha": 5.0}, r"concepts: expected the words to guide, got none, but alpha"),
        ({"concepts": ["cat"], "alpha": -1.0}, "alpha: expected a number of at least 0"),
        ({"concepts": ["cat"], "layout": [(0, 0, 2, 1)]}, "expected a box"),
        ({"concepts": ["cat"], "layout": [None, None]}, "expected one entry for each of 1 concepts, got 2"),
        ({"concepts": ["cat"], "layout": {"dog": None}}, "layout: expected the concepts cat, got 'dog'"),
        ({"concepts": ["cat"], "layout": [np.full((4, 4), 7.0)]}, "expected a mask"),
    ],
)
def test_wrong_requests_are_one_clear_line(asked: dict[str, Any], message: str) -> None:
    guided, _ = guided_and_plain("sd1")
    with pytest.raises(InputError, match=message):
        run(guided, **asked)


def test_a_batch_asks_for_a_list_each() -> None:
    guided, _ = guided_and_plain("sd1")
    with pytest.raises(InputError, match="concepts: expected a list for each of 2 prompts"):
        run(guided, [PROMPT] * 2, concepts=["cat", "dog"])
