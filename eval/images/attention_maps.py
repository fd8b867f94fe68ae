"""Images of where a model's words look, step by step, plain and under a guidance."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from diffusers import DiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from erasure.backbones import backbone_of
from erasure.backbones.loaded import denoiser_of
from erasure.concept import normalized
from erasure.errors import InputError
from erasure.guidance import Applicable
from erasure.guidance.attention import mean_overlap
from erasure.guidance.base import named_prompts
from erasure.guidance.denoising import Denoising
from erasure.guidance.map_reading import MapReading
from erasure.guidance.steps import around_each_step
from erasure.sampling import SamplingSettings, sample_pairs

from .sheets import side_by_side

_COLOUR = np.array([255, 96, 0], dtype=np.float32)
_SHOWN = MapReading(normalise="raw")  # what the model itself has, before tokens are made to compete


@dataclass(kw_only=True)
class AttentionTrace:
    """Attention maps of one sampled image.

    Attributes:
        image: As it came out.
        maps: For each step of the schedule the map of each concept, probabilities in [0, 1].
    """

    image: Image.Image
    maps: dict[int, Float[Tensor, "k h w"]] = field(default_factory=dict)

    def overlap(self, step: int) -> float:
        """Return the soft IoU of the concepts at a step, each map brought to a maximum of 1; mean over pairs."""
        maps = self.maps[step]
        return mean_overlap(maps / maps.amax((1, 2), keepdim=True))


def trace_attention(
    pipe: DiffusionPipeline,
    prompt: str,
    concepts: Sequence[str],
    seed: int,
    sampler: SamplingSettings,
    guidance: Applicable | None = None,
) -> AttentionTrace:
    """Make an image and keep the maps of the denoiser's own passes.

    Args:
        pipe: The pipeline, with whatever is in force on it.
        prompt: Prompt.
        concepts: Words or phrases of the prompt.
        seed: Seed of the noise, >= 0.
        sampler: Sampling settings.
        guidance: Guidance to apply.

    Raises:
        InputError: The prompt does not hold a concept, or one is named twice.
    """
    if len({normalized(concept) for concept in concepts}) < len(concepts):
        raise InputError(f"concepts: expected each once, got {', '.join(concepts)}. Leave one out.")
    states = backbone_of(pipe).encode([prompt])
    for concept in concepts:
        states.word_positions(0, concept)  # says so where the prompt does not hold it
    maps: dict[int, Tensor] = {}
    with nullcontext() if guidance is None else guidance.applied_to(pipe), _watching(pipe, concepts, maps):
        (image,) = sample_pairs(pipe, [(prompt, seed)], sampler)
    return AttentionTrace(image=image, maps=maps)


@contextmanager
def _watching(pipe: DiffusionPipeline, concepts: Sequence[str], maps: dict[int, Tensor]) -> Generator[None]:
    denoiser = denoiser_of(pipe)
    capture = _SHOWN.capture(denoiser)
    with named_prompts(pipe, concepts) as named:

        def after(call: Denoising, output: Tensor) -> Tensor:
            attention = call.conditional(_SHOWN.attention(capture, capture.maps, call.latents, denoiser))
            maps[call.step] = _SHOWN.concept_maps(attention[0].detach(), named()[0]).cpu()
            return output

        with capture, around_each_step(pipe, rows=lambda: len(named()), after=after, needs="map guidance"):
            yield


def attention_sheet(rows: Sequence[tuple[str, AttentionTrace]], concepts: Sequence[str], columns: int) -> Image.Image:
    """Draw the maps over the finished image, a row for each concept of each image, a column for each step shown.

    A map is brought to its own maximum, so brightness compares within a frame only; the last column is the image.

    Args:
        rows: Heading and trace of each image.
        concepts: Concepts in the order of the traces.
        columns: Number of steps shown, evenly spaced from the first to the last, >= 2.

    Raises:
        InputError: Fewer than two columns.
    """
    if columns < 2:
        raise InputError(f"columns: expected at least 2, got {columns!r}. The first and the last step are shown.")
    steps = sorted(rows[0][1].maps)
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, columns).round().astype(int))]
    headings = [f"step {step + 1}" for step in shown]
    captions, images = [], []
    for heading, seen in rows:
        overlaps = f"overlap {seen.overlap(shown[0]):.2f} to {seen.overlap(shown[-1]):.2f}"
        for i, concept in enumerate(concepts):
            captions.append(f"{heading}: {concept}" + (f" ({overlaps})" if i == 0 and len(concepts) > 1 else ""))
            frames = [overlaid(seen.image, seen.maps[step][i]) for step in shown]
            images.append([*frames, seen.image])
    return side_by_side([*headings, "image"], captions, images, cell=144)


def overlaid(image: Image.Image, attention: Float[Tensor, "h w"]) -> Image.Image:
    """Return an image in grey with an attention map over it, strongest where the map has its maximum."""
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    heat = Image.fromarray((attention / attention.max().clamp(min=1e-12)).numpy().astype(np.float32))
    share = np.asarray(heat.resize(image.size, Image.Resampling.BILINEAR))[..., None].clip(0, 1)
    mixed = grey * (0.75 - 0.6 * share) + _COLOUR * share * 0.85
    return Image.fromarray(mixed.clip(0, 255).round().astype(np.uint8))
