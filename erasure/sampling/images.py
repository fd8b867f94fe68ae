"""Sampling of images from prompts and seeds, equal in every run and batch."""
# pyright: reportUnknownMemberType=false
# Methods of diffusers take untyped keyword arguments.

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..backbones.base import Backbone
from ..backbones.conditioning import Conditioning, reading
from ..backbones.schedule import Flow
from ..backbones.usable import check_call
from ..errors import ErasureError, InputError, reason
from ..progress import OnProgress, Progress
from .latents import Latents, noise
from .settings import SamplingSettings

logger = logging.getLogger(__name__)

ImageArray = UInt8[np.ndarray, "n height width 3"]
Pair = tuple[str, int]
"""Prompt and seed of an image."""


@overload
def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    settings: SamplingSettings | None = ...,
    *,
    output: Literal["pil"] = ...,
    on_progress: OnProgress | None = ...,
) -> list[Image.Image]: ...
@overload
def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    settings: SamplingSettings | None = ...,
    *,
    output: Literal["uint8"],
    on_progress: OnProgress | None = ...,
) -> ImageArray: ...
@overload
def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    settings: SamplingSettings | None = ...,
    *,
    output: Literal["latents"],
    on_progress: OnProgress | None = ...,
) -> Latents: ...
@checks_arguments
def sample(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Conditioning,
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    output: Literal["pil", "uint8", "latents"] = "pil",
    on_progress: OnProgress | None = None,
) -> list[Image.Image] | ImageArray | Latents:
    """Return one image for each pair of a prompt and a seed.

    The noise of each image comes from its own CPU generator, so it is bit-equal whatever the batch, the device and the
    dtype, also for samplers that add noise on the way. Each distinct prompt is encoded once. The images are made by the
    pipeline's own call on a shallow copy with a scheduler of its own: the pipeline is left as it was, and an edit or a
    guidance that is applied to it is in force. So is its safety checker, if it has one.

    Args:
        pipe: Loaded diffusers pipeline.
        prompts: Prompt of each image; or encoded prompts, a row for each image.
        seeds: Seed of each image, >= 0.
        settings: Sampling settings; None takes the defaults of the model's profile.
        output: "pil"; "uint8" in [0, 255]; or "latents", on the CPU and as the denoiser left them.
        on_progress: Receives the number of images done after each batch.

    Raises:
        InputError: Lengths that differ, a setting that is out of range, a pipeline of another task, or images that are
            not finite.
    """
    settings = settings or SamplingSettings.of(pipe)
    _check(prompts, seeds)
    backbone = backbone_of(pipe)
    check_call(backbone, settings.steps, settings.height, settings.width)
    if not len(prompts):
        return _nothing(pipe, backbone.latent_shape(settings.height, settings.width), output)
    runner = _runner(pipe)
    states, row_of = _encoded(backbone, prompts)
    negative = _negative(backbone, settings.negative_prompt) if settings.guidance_scale > 1 else None
    latents: list[Latents] = []
    arrays: list[ImageArray] = []
    size = settings.batch_size if "mixed lengths" in backbone.abilities else 1
    for start in range(0, len(prompts), size):
        batch = slice(start, start + size)
        read = states.select(row_of[batch])
        images = _sampled(runner, backbone, read, negative, seeds[batch], settings, output)
        if isinstance(images, Tensor):
            latents.append(images)
        else:
            arrays.append(_as_uint8(images))
        if on_progress is not None:
            on_progress(Progress(done=start + len(read), total=len(prompts), stage="images"))
    if output == "latents":
        return torch.cat(latents)
    if output == "uint8":
        return np.concatenate(arrays)
    return [Image.fromarray(image) for array in arrays for image in array]


@checks_arguments
def sample_part(
    pipe: DiffusionPipeline,
    states: Conditioning,
    start: Latents | None,
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    first: int = 0,
    last: int | None = None,
    eta: float | None = None,
    output: Literal["pil", "latents"] = "pil",
) -> list[Image.Image] | Latents:
    """Sample the steps from `first` to before `last`, by the pipeline's own call and scheduler.

    Guidance that is applied to the pipeline is in force, at its place in the whole schedule. The steps before and after
    may be those of another model or prompt: hand the latents on.

    Args:
        pipe: Loaded diffusers pipeline.
        states: Encoded prompts, a row for each image.
        start: Latents at step `first`, as an earlier call returned them or `half_noised` did; None draws the noise of
            step 0 from the seeds.
        seeds: Seed of each image, >= 0; for samplers that add noise.
        settings: Sampling settings of the whole schedule.
        first: First step, from 0.
        last: Step to stop before; None runs to the end.
        eta: Share of DDIM's ancestral noise, for a pipeline that takes it; None leaves it out.
        output: "pil", or "latents" on the CPU.
    """
    backbone = backbone_of(pipe)
    runner = _runner(pipe)
    scheduler = cast("DiffusionPipeline", runner).scheduler
    unscaled = 1.0 if first == 0 else float(getattr(scheduler, "init_noise_sigma", 1.0))
    _cut_steps(scheduler, first, last)
    negative = _negative(backbone, settings.negative_prompt) if settings.guidance_scale > 1 else None
    further = {} if eta is None else {"eta": eta}
    parts: list[Latents | np.ndarray] = []
    size = settings.batch_size if "mixed lengths" in backbone.abilities else 1
    for begin in range(0, len(states), size):
        rows = range(begin, min(begin + size, len(states)))
        latents = None if start is None else start[begin : begin + len(rows)] / unscaled
        batch = [seeds[i] for i in rows]
        parts.append(
            _sampled(runner, backbone, states.select(rows), negative, batch, settings, output, latents, further)
        )
    if output == "latents":
        return torch.cat(cast("list[Tensor]", parts))
    return [Image.fromarray(image) for part in parts for image in _as_uint8(cast("np.ndarray", part))]


@checks_arguments
def half_noised(pipe: DiffusionPipeline, clean: Latents, seeds: Sequence[int], steps: int, first: int) -> Latents:
    """Return clean latents with the noise of step `first` of a schedule of so many steps, as image-to-image starts."""
    added = noise([torch.Generator().manual_seed(seed) for seed in seeds], (*clean.shape[1:],))  # type: ignore[arg-type]
    schedule = backbone_of(pipe).schedule
    if isinstance(schedule, Flow):
        return schedule.noised(clean, added, schedule.timesteps(steps)[first : first + 1])
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    return scheduler.add_noise(clean, added, scheduler.timesteps[first : first + 1].cpu().expand(len(clean)))


def _cut_steps(scheduler: Any, first: int, last: int | None) -> None:
    """Cut the steps that a scheduler runs, the place in the whole schedule kept.

    A pipeline reads the steps right after it set their number; what steps the scheduler makes is then decided by the
    whole list again, as in image-to-image.
    """
    set_timesteps, set_begin = scheduler.set_timesteps, getattr(scheduler, "set_begin_index", None)
    whole: list[Tensor] = []

    def restored(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if whole:
                scheduler.timesteps = whole.pop()
            return method(*args, **options)

        return call

    @wraps(set_timesteps)  # pipelines look at its parameters
    def set_part(*args: Any, **options: Any) -> None:
        set_timesteps(*args, **options)
        whole[:] = [scheduler.timesteps]
        scheduler.timesteps = scheduler.timesteps[first:last]
        if set_begin is not None:
            set_begin(first)

    for name in ("scale_model_input", "step"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, restored(getattr(scheduler, name)))
    scheduler.set_timesteps = set_part
    if set_begin is not None:
        scheduler.set_begin_index = lambda begin=0: set_begin(first + begin)


def _encoded(backbone: Backbone, prompts: Sequence[str] | Conditioning) -> tuple[Conditioning, list[int]]:
    """Return the states of the distinct prompts, and the row of each prompt."""
    if isinstance(prompts, Conditioning):
        return prompts, list(range(len(prompts)))
    distinct = list(dict.fromkeys(prompts))
    return backbone.encode(distinct), [distinct.index(prompt) for prompt in prompts]


def _sampled(
    runner: Callable[..., ImagePipelineOutput],
    backbone: Backbone,
    states: Conditioning,
    negative: Conditioning | None,
    seeds: Sequence[int],
    settings: SamplingSettings,
    output: str,
    start: Latents | None = None,
    further: Mapping[str, Any] = MappingProxyType({}),
) -> Latents | np.ndarray:
    """Return the latents of one batch on the CPU, or its images as floats in [0, 1]."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    others = negative.expand(len(seeds)) if negative is not None else None
    shape = backbone.latent_shape(settings.height, settings.width)
    latents = (noise(generators, shape) if start is None else start).to(backbone.device, backbone.dtype)
    height, width = (side * backbone.pipe.vae_scale_factor for side in shape[1:])
    with reading(states), _one_line(backbone.pipe, f"{settings.steps} steps at {height} x {width} pixels"):
        called = runner(
            generator=generators,
            num_inference_steps=settings.steps,
            height=height,
            width=width,
            output_type="latent" if output == "latents" else "np",
            **backbone.call_arguments(latents, states, others, settings.guidance_scale),
            **further,
        )
    images = cast("Tensor | np.ndarray", called.images)
    if not np.isfinite(images.float().cpu().numpy() if isinstance(images, Tensor) else images).all():
        raise InputError(
            f"sample: expected finite images, got nan of {states.prompts[0]!r} as"
            f" {str(backbone.dtype).removeprefix('torch.')}. Lower the guidance scale, load the model in float32, or"
            " load one that is whole."
        )
    return backbone.unpacked(images, height, width).cpu() if isinstance(images, Tensor) else images


@contextmanager
def _one_line(pipe: DiffusionPipeline, call: str) -> Generator[None]:
    """Turn what a pipeline and its scheduler say of a call that they refuse into one line."""
    try:
        yield
    except ErasureError:
        raise
    except (ValueError, ArithmeticError, LookupError) as error:
        takers = f"{type(pipe).__name__} and its {type(pipe.scheduler).__name__}"
        raise InputError(
            f"sample: expected settings that {takers} take, got {call} ({reason(error)}). Give others."
        ) from error
    except RuntimeError as error:  # of torch: of memory, or of numbers that do not go together
        if not any(words in str(error) for words in ("same dtype", "not implemented for", "meta tensor")):
            raise
        raise InputError(
            f"sample: expected weights of one precision, all in memory, that {pipe.device} computes in, got others"
            f" ({reason(error)}). Load the model whole in float32."
        ) from error


@checks_arguments
def sample_pairs(
    pipe: DiffusionPipeline,
    pairs: Sequence[Pair],
    settings: SamplingSettings | None = None,
    on_progress: OnProgress | None = None,
) -> list[Image.Image]:
    """Return one image for each pair of a prompt and a seed; see `sample`."""
    prompts, seeds = [prompt for prompt, _ in pairs], [seed for _, seed in pairs]
    return sample(pipe, prompts, seeds, settings, on_progress=on_progress)


@checks_arguments
def grid(prompts: Iterable[str], seeds: Iterable[int]) -> tuple[list[str], list[int]]:
    """Return every prompt with every seed as the two lists that `sample` takes; the seed changes fastest."""
    seeds = list(seeds)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    return [prompt for prompt, _ in pairs], [seed for _, seed in pairs]


def _runner(pipe: DiffusionPipeline) -> Callable[..., ImagePipelineOutput]:
    """Return a copy of the pipeline that shares its models but has its own scheduler and progress bar."""
    runner = copy.copy(pipe)
    runner.scheduler = copy.deepcopy(pipe.scheduler)
    runner.set_progress_bar_config(disable=True)
    if getattr(pipe, "safety_checker", None) is not None:
        logger.warning("sample: the pipeline's safety checker is on; images that it rejects come out black.")
    return cast("Callable[..., ImagePipelineOutput]", runner)


def _negative(backbone: Backbone, prompt: str) -> Conditioning:
    return backbone.negative([prompt]) if prompt else backbone.unconditional()


def _as_uint8(images: np.ndarray) -> ImageArray:
    """Return float images in [0, 1] as uint8 in [0, 255], rounded as diffusers does for PIL."""
    return (images * 255).round().astype(np.uint8)


def _nothing(
    pipe: DiffusionPipeline, shape: tuple[int, int, int], output: str
) -> list[Image.Image] | ImageArray | Latents:
    channels, height, width = shape
    if output == "latents":
        return torch.empty(0, channels, height, width)
    scale = pipe.vae_scale_factor
    return np.empty((0, height * scale, width * scale, 3), np.uint8) if output == "uint8" else []


def _check(prompts: Sequence[str] | Conditioning, seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"sample.seeds: expected whole numbers from 0 to 2^63 - 1, got {seed!r}. Give another.")
    if len(prompts) != len(seeds):
        raise InputError(
            f"sample.seeds: expected one seed for each of {len(prompts)} prompts, got {len(seeds)}."
            " Use grid(prompts, seeds) for every prompt with every seed."
        )
