"""Prompts and seeds to pictures, the same on every run and in every batch; and the first part of that, for training."""

import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .backbones import backbone_of
from .backbones.base import Backbone
from .backbones.conditioning import Conditioning, concatenate, reading
from .backbones.schedule import Timestep
from .errors import InputError
from .progress import OnProgress, Progress

logger = logging.getLogger(__name__)

Pictures = UInt8[np.ndarray, "n height width 3"]
Latents = Float[Tensor, "n c h w"]


@overload
def sample(
    pipe: Any,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = ...,
    guidance_scale: float = ...,
    negative_prompt: str = ...,
    batch_size: int = ...,
    height: int | None = ...,
    width: int | None = ...,
    output: Literal["pil"] = ...,
    on_progress: OnProgress | None = ...,
) -> list[Image.Image]: ...
@overload
def sample(
    pipe: Any,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = ...,
    guidance_scale: float = ...,
    negative_prompt: str = ...,
    batch_size: int = ...,
    height: int | None = ...,
    width: int | None = ...,
    output: Literal["uint8"],
    on_progress: OnProgress | None = ...,
) -> Pictures: ...
@overload
def sample(
    pipe: Any,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = ...,
    guidance_scale: float = ...,
    negative_prompt: str = ...,
    batch_size: int = ...,
    height: int | None = ...,
    width: int | None = ...,
    output: Literal["latents"],
    on_progress: OnProgress | None = ...,
) -> Latents: ...
def sample(
    pipe: Any,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance_scale: float = 4.0,
    negative_prompt: str = "",
    batch_size: int = 16,
    height: int | None = None,
    width: int | None = None,
    output: Literal["pil", "uint8", "latents"] = "pil",
    on_progress: OnProgress | None = None,
) -> list[Image.Image] | Pictures | Latents:
    """Return one picture for each pair of a prompt and a seed.

    The noise of each picture comes from its own CPU generator, so it is bit-equal whatever the batch, the device and
    the dtype, also for samplers that add noise on the way. Each distinct prompt is encoded once. The pictures are made
    by the pipeline's own call on a shallow copy with a scheduler of its own: the pipeline is left as it was, and
    whatever is applied to it (an edit, a guidance) is in force. So is its safety checker, if it has one.

    Args:
        pipe: A loaded diffusers pipeline.
        prompts: One for each picture; or text states, a row for each.
        seeds: As many; any integer from 0 on is a seed.
        steps: Of the pipeline's own scheduler.
        guidance_scale: Of classifier-free guidance; 1 or less samples without it.
        negative_prompt: Takes the place of the unconditional prompt; "" is the pipeline's own.
        batch_size: How many pictures are made at once.
        height: In pixels; None is the model's own.
        width: In pixels; None is the model's own.
        output: "pil"; "uint8" in [0, 255]; or "latents", on the CPU and as the denoiser left them.
        on_progress: Receives the number of images done after each batch.

    Raises:
        InputError: Lengths that differ, or a setting that is out of range.
    """
    _check(prompts, seeds, steps=steps, batch_size=batch_size)
    backbone = backbone_of(pipe)
    shape = backbone.latent_shape(height, width)
    if not len(prompts):
        return _nothing(pipe, shape, output)
    runner = _runner(pipe)
    if isinstance(prompts, Conditioning):
        states, row_of = prompts, list(range(len(prompts)))
    else:
        distinct = list(dict.fromkeys(prompts))
        states, row_of = backbone.encode(distinct), [distinct.index(prompt) for prompt in prompts]
    guided = guidance_scale > 1
    negative = (backbone.encode([negative_prompt]) if negative_prompt else backbone.unconditional()) if guided else None
    results: list[Any] = []
    for start in range(0, len(prompts), batch_size):
        rows = row_of[start : start + batch_size]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]]
        read = states.select(rows)
        others = negative.expand(len(rows)) if negative is not None else None
        start_latents = noise(generators, shape).to(backbone.device, backbone.dtype)
        with reading(read):
            called = runner(
                generator=generators,
                num_inference_steps=steps,
                height=height,
                width=width,
                output_type="latent" if output == "latents" else "np",
                **backbone.call_arguments(start_latents, read, others, guidance_scale),
            )
        results.append(
            backbone.unpacked(called.images, height, width).cpu() if output == "latents" else _as_uint8(called.images)
        )
        if on_progress is not None:
            on_progress(Progress(done=start + len(rows), total=len(prompts), stage="images"))
    if output == "latents":
        return torch.cat(results)
    if output == "uint8":
        return np.concatenate(results)
    return [Image.fromarray(picture) for batch in results for picture in batch]


def grid(prompts: Iterable[str], seeds: Iterable[int]) -> tuple[list[str], list[int]]:
    """Return every prompt with every seed as the two lists that `sample` takes; the seed changes fastest."""
    seeds = list(seeds)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    return [prompt for prompt, _ in pairs], [seed for _, seed in pairs]


def noise(generators: Sequence[torch.Generator], shape: tuple[int, int, int]) -> Latents:
    """Return standard normal noise as float32 on the CPU, each row from its own CPU generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


@torch.no_grad()
def trajectory_latents(
    backbone: Backbone,
    start: Latents,
    states: Conditioning,
    unconditional: Conditioning,
    *,
    steps: int,
    guidance_scale: float,
    stops: Sequence[int],
) -> dict[int, Latents]:
    """Return the latents at some steps of a deterministic trajectory, along `NoiseSchedule.step`.

    The run ends at the last of them. The schedule is the denoiser's own, whatever scheduler the pipeline has, so the
    latents are what `Backbone.predict` takes.

    Args:
        backbone: The denoiser.
        start: Standard normal noise.
        states: One row for each latent.
        unconditional: One row, for classifier-free guidance.
        steps: Number of steps of the whole schedule.
        guidance_scale: Of classifier-free guidance; 1 samples from the conditional prediction alone.
        stops: Steps from 0 (the start) to steps - 1; step i is at timestep `schedule.timesteps(steps)[i]`.

    Returns:
        Float32 latents on the model's device by place.
    """
    schedule = backbone.schedule
    timesteps = schedule.timesteps(steps).to(backbone.device)
    latents = start.to(backbone.device, torch.float32)
    guided = guidance_scale != 1
    read = concatenate([unconditional.expand(len(states)), states]) if guided else states
    found: dict[int, Latents] = {}
    for place in range(max(stops) + 1):
        if place in stops:
            found[place] = latents
        if place == max(stops):
            break
        timestep = timesteps[place]
        doubled = torch.cat([latents, latents]) if guided else latents
        prediction = scheduled_prediction(backbone, doubled, timestep, read)
        if guided:
            unconditional_part, conditional = prediction.chunk(2)
            prediction = unconditional_part + guidance_scale * (conditional - unconditional_part)
        latents = schedule.step(prediction, latents, timestep, timesteps[place + 1])
    return found


def scheduled_prediction(backbone: Backbone, latents: Latents, timestep: Timestep, states: Conditioning) -> Latents:
    """Return the schedule's `prediction` (the noise, or a velocity) in float32, whatever the model computes in."""
    output = backbone.predict(latents, timestep, states)
    return backbone.schedule.prediction(output.float(), latents.float(), timestep)


def _runner(pipe: Any) -> Any:
    """Return a copy that shares the models and may be run: its scheduler, settings and progress bar are its own."""
    runner = copy.copy(pipe)
    runner.scheduler = copy.deepcopy(pipe.scheduler)
    runner.set_progress_bar_config(disable=True)
    if getattr(pipe, "safety_checker", None) is not None:
        logger.warning("sample: the pipeline's safety checker is on; pictures that it rejects come out black.")
    return runner


def _as_uint8(images: np.ndarray) -> Pictures:
    """Return float pictures in [0, 1] in [0, 255], rounded as diffusers does for PIL."""
    return (images * 255).round().astype(np.uint8)


def _nothing(pipe: Any, shape: tuple[int, int, int], output: str) -> list[Image.Image] | Pictures | Latents:
    channels, height, width = shape
    if output == "latents":
        return torch.empty(0, channels, height, width)
    scale = pipe.vae_scale_factor
    return np.empty((0, height * scale, width * scale, 3), np.uint8) if output == "uint8" else []


def _check(prompts: Sequence[str] | Conditioning, seeds: Sequence[int], *, steps: int, batch_size: int) -> None:
    if isinstance(prompts, str):
        raise InputError(f"sample.prompts: expected a list of texts, got {prompts!r}. Write [{prompts!r}].")
    if len(prompts) != len(seeds):
        raise InputError(
            f"sample.seeds: expected one seed for each of {len(prompts)} prompts, got {len(seeds)}."
            " Use grid(prompts, seeds) for every prompt with every seed."
        )
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"sample.{name}: expected at least 1, got {value!r}. Give a positive number.")
