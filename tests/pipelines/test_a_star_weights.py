"""What of A-STAR only real weights or a GPU can show; skipped where they are not at hand."""

import itertools
import time
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from erasure.guidance.attention import GuidedStep
from erasure.judge import cached_clips, load_clip
from erasure.pipelines.a_star import StableDiffusionAStarPipeline, StableDiffusionXLAStarPipeline
from tests import tiny

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PROMPT, CONCEPTS = "a cat and a dog", ["cat", "dog"]


@pytest.fixture(scope="module")
def stable_diffusion() -> Any:
    """Return Stable Diffusion 1.5 from the local cache."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pipe = StableDiffusionAStarPipeline.from_pretrained(MODEL, local_files_only=True, safety_checker=None)
    except OSError:
        pytest.skip(f"{MODEL} is not in the local cache: hf download {MODEL}")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@pytest.mark.weights
def test_the_loss_falls_in_nearly_every_step_of_stable_diffusion(stable_diffusion: Any) -> None:
    """The loss at the moved latents is below that before the move in more than 95 of 100 steps."""
    # A refined step looks at the loss again where the first update left the latents.
    settings = {"concepts": CONCEPTS, "retention_scale": 0.0, "num_inference_steps": 20, "output_type": "latent"}
    falls = []
    for seed in range(4):
        steps: list[GuidedStep] = []
        generator = torch.Generator().manual_seed(seed)
        stable_diffusion(
            PROMPT,
            refine_at=tuple(range(20)),
            refine_updates=2,
            generator=generator,
            on_guided=steps.append,
            **settings,
        )
        falls += [step.last_loss[0] < step.loss[0] for step in steps]
    assert sum(falls) > 0.95 * len(falls)


@pytest.mark.weights
def test_both_animals_are_drawn_more_often(stable_diffusion: Any) -> None:
    source = next(iter(cached_clips()), None)
    if source is None:
        pytest.skip("no CLIP weights in the local cache")
    device = str(stable_diffusion.device)
    model, processor = load_clip(source, device)
    texts = ["a cat and a dog", "two cats", "two dogs", "a cat", "a dog", "a mix of a cat and a dog"]

    def both(**settings: Any) -> int:
        found = 0
        for seed in range(64 if device != "cpu" else 4):
            generator = torch.Generator().manual_seed(seed)
            (image,) = stable_diffusion(PROMPT, generator=generator, **settings).images
            batch = processor(text=texts, images=[image], return_tensors="pt", padding=True).to(device)
            with torch.inference_mode():
                found += int(model(**batch).logits_per_image.argmax()) == 0
        return found

    assert both(concepts=CONCEPTS) > both()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_it_runs_on_a_gpu_whole_and_offloaded(family: str, dtype: torch.dtype) -> None:
    kind: Any = StableDiffusionAStarPipeline if family == "sd1" else StableDiffusionXLAStarPipeline
    base = tiny.FAMILIES[family]().to(dtype)

    def run(pipe: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        asked = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe(PROMPT, concepts=CONCEPTS, alpha=100.0, **asked).images.float().cpu()

    on_gpu = run(kind.from_pipe(base).to("cuda"))
    pipe = kind.from_pipe(base.to("cpu"))
    pipe.enable_model_cpu_offload()
    offloaded = run(pipe)
    assert torch.isfinite(on_gpu).all()
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(offloaded, on_gpu, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_a_guided_step_costs_at_most_six_tenths_of_an_ordinary_one_on_a_gpu() -> None:
    pipe: Any = StableDiffusionAStarPipeline.from_pipe(tiny.sd15().to(torch.float16)).to("cuda")
    pipe.set_progress_bar_config(disable=True)

    def seconds(**settings: Any) -> float:
        moments: list[float] = []

        def note(_: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
            torch.cuda.synchronize()
            moments.append(time.perf_counter())
            return tensors

        pipe(PROMPT, num_inference_steps=12, output_type="latent", callback_on_step_end=note, **settings)
        return sorted(later - earlier for earlier, later in itertools.pairwise(moments))[5]

    seconds()
    assert seconds(concepts=CONCEPTS) / seconds() < 1.6
