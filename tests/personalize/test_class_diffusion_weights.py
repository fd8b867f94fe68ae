"""What of ClassDiffusion only real weights or a GPU can show; skipped where they are not at hand."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from erasure.backbones import backbone_of
from erasure.eval.protocols.instances.metrics import PublicInstanceMetrics
from erasure.eval.protocols.instances.prompts import class_requests
from erasure.eval.protocols.instances.scores import instance_scores, read_instance
from erasure.personalize.class_diffusion import ClassDiffusion, Instance
from erasure.sampling import SamplingSettings, sample
from tests import tiny

MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.weights
def test_a_larger_weight_composes_better_and_looks_less_alike() -> None:
    """CLIP-T and the least fit rise, CLIP-I falls, from weight 0 to 100; a toy that the model drew is learned."""
    from diffusers import StableDiffusionPipeline

    if not torch.cuda.is_available():
        pytest.skip("1,000 updates of Stable Diffusion 1.5 want a CUDA device")
    try:
        pipe: Any = StableDiffusionPipeline.from_pretrained(MODEL, local_files_only=True, safety_checker=None)
    except OSError:
        pytest.skip(f"{MODEL} is not in the local cache: hf download {MODEL}")
    pipe = pipe.to("cuda")
    pictures = sample(
        pipe,
        ["a photo of a knitted purple owl toy on a table"] * 5,
        list(range(5)),
        SamplingSettings(steps=30, guidance_scale=4.0),
    )
    judge = PublicInstanceMetrics(images=pictures, device="cuda")
    if not {"clip_i", "clip_score"} <= judge.setups.keys():
        pytest.skip(f"no CLIP weights in the local cache: {judge.skipped}")
    instance = Instance(token="<owl>", class_word="toy", images=pictures)
    requests = [
        request
        for request in class_requests("toy", (), composed=32, kept=1)
        if request.group in ("alone", "composed", "class")
    ]
    found = {}
    for weight in (0.0, 100.0):
        edit = ClassDiffusion(spl_weight=weight).fit(backbone_of(pipe), [instance])
        with edit.applied_to(pipe):
            prompts = [request.filled(instance.phrase) for request in requests]
            images = sample(
                pipe, prompts, [request.seed for request in requests], SamplingSettings(steps=30, guidance_scale=7.5)
            )
        looks = read_instance(requests, "toy", judge, images)
        found[weight] = instance_scores(judge, looks, looks)
    assert found[100.0].fits["clip_score"]["whole"].value > found[0.0].fits["clip_score"]["whole"].value
    assert found[100.0].likeness["clip_i"]["alone"].value < found[0.0].likeness["clip_i"]["alone"].value


def test_the_judges_of_other_models_tell_what_they_lack() -> None:
    judge = PublicInstanceMetrics(images=[Image.new("RGB", (64, 64), colour) for colour in ("red", "darkred")])
    assert {*judge.setups, *judge.skipped} == {"clip_i", "dino_i", "clip_score", "blip_itc", "blip2_itc", "blip2_itm"}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_an_instance_is_learned_and_drawn_on_a_gpu(family: str, dtype: torch.dtype) -> None:
    pipe = tiny.FAMILIES[family]().to("cuda", dtype)
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)) for seed in range(2)
    ]
    instance = Instance(token="<biscuit>", class_word="dog", images=pictures)
    losses: list[float] = []
    edit = ClassDiffusion(steps=5, lr=1e-3).fit(
        backbone_of(pipe), [instance], on_progress=lambda step: losses.append(step.loss)
    )
    assert np.isfinite(losses).all()
    before = backbone_of(pipe).fingerprint()
    with edit.applied_to(pipe):
        drawn = sample(pipe, ["a <biscuit> dog"], [0], SamplingSettings(steps=2, guidance_scale=4.0), output="uint8")
    assert drawn.std() > 0
    assert backbone_of(pipe).fingerprint() == before
