"""Replay memory of a continual eraser: images of the original model, kept as latents.

They are made once, from the weights before the first removal, and kept beside the ledger, so that what is replayed does
not drift from one removal to the next.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..backbones.autoencoder import decoded_pixels
from ..backbones.base import Backbone
from ..concept import Concept
from ..errors import InputError
from ..graph import ConceptGraph, text_similarity
from ..io.tensor_cache import stored
from ..judge import shows_any
from ..prompts import GENERIC, fill, preserved_templates, speaks_of
from ..sampling import SamplingSettings, sample
from .context import FitContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """Images of the original model with their prompts.

    Attributes:
        prompts: Prompt of each image.
        latents: Latents after the last step of the denoiser, float16 on the CPU.
    """

    prompts: tuple[str, ...]
    latents: Float[Tensor, "n c h w"]

    def __len__(self) -> int:
        return len(self.prompts)

    def select(self, keep: Sequence[bool]) -> "Memory":
        """Return the images for which `keep` is true."""
        kept = [i for i, keeps in enumerate(keep) if keeps]
        return Memory(prompts=tuple(self.prompts[i] for i in kept), latents=self.latents[kept])


def remembered(
    context: FitContext,
    prompts: Sequence[str],
    *,
    sampling: SamplingSettings,
    seed: int,
) -> Memory:
    """Return the original model's image of each prompt, from the context's folder where they are there already.

    Args:
        context: The model, its original weights, the folder, and the receiver of progress after each batch.
        prompts: Prompt of each image.
        sampling: Sampling settings.
        seed: Seed of the first image's noise, >= 0; the following images count up from it.

    Raises:
        InputError: The folder cannot be written, or holds a damaged file.
    """
    backbone = context.backbone

    def make() -> dict[str, Tensor]:
        with context.original():
            latents = sample(
                backbone.pipe,
                prompts,
                [seed + i for i in range(len(prompts))],
                sampling,
                output="latents",
                on_progress=context.on_progress,
            )
        return {"latents": latents.half()}

    with context.original():
        base = backbone.fingerprint()
    settings = {name: getattr(sampling, name) for name in ("steps", "guidance_scale", "batch_size")}
    key = [base, list(prompts), settings, seed]
    return Memory(prompts=tuple(prompts), latents=stored(context.history.memory, key, make)["latents"])


def memory_prompts(
    backbone: Backbone,
    concepts: Sequence[Concept],
    total: int,
    *,
    contexts: Sequence[str] = ("a photo of a {}",),
    without: Sequence[Concept] = (),
) -> tuple[str, ...]:
    """Return the prompts of a memory: half everyday things, half the preserved concepts nearest to the removed ones.

    The preserved names are ordered by similarity in the text space, nearest first, and each occurs equally often; if
    nothing is preserved, everyday things take this half too. The contexts alternate. No prompt names one of the
    concepts or one of `without`.
    """
    targets = [concept.target for concept in concepts]
    kept = [name for concept in concepts for name in concept.preserve]
    graph = ConceptGraph.of(backbone, [*targets, *kept])
    near = [name for name, _ in graph.nearest(targets)]
    close = [
        fill(contexts[(row + turn) % len(contexts)], word)
        for turn in range(len(contexts))
        for row, word in enumerate(near)
    ]
    halves = [f"a photo of {thing}" for thing in GENERIC], close
    free = [[prompt for prompt in half if not speaks_of(prompt, [*concepts, *without])] for half in halves]
    generic, close = free[0], free[1] or free[0]
    return tuple((generic if i % 2 else close)[i // 2 % len(generic if i % 2 else close)] for i in range(total))


def replayed(
    context: FitContext,
    concepts: Sequence[Concept],
    size: int,
    *,
    each: bool,
    max_similarity: float,
    sampling: SamplingSettings,
    seed: int,
) -> Memory:
    """Return the original model's images of preserved concepts, without those that show a removed one.

    Args:
        context: Surroundings of the fit.
        concepts: Concepts of the request at hand.
        size: Number of images, >= 2, half of them near a request.
        each: Whether the near half is of the request at hand, in all contexts of its kind; else of the first request.
        max_similarity: See `free_of`.
        sampling: Sampling settings.
        seed: Seed of the first image, >= 0.

    Raises:
        InputError: No image is left.
    """
    removed = [*context.targets, *concepts]
    if each:
        contexts = preserved_templates(concepts[0].kind)
        prompts = memory_prompts(context.backbone, concepts, size, contexts=contexts, without=removed)
    else:
        prompts = memory_prompts(context.backbone, removed[:1], size)
    memory = remembered(context, prompts, sampling=sampling, seed=seed)
    left = free_of(context, memory, removed, max_similarity=max_similarity)
    if not len(left):
        raise InputError(
            f"memory: expected images that show none of {', '.join(c.target for c in removed)}, got none of"
            f" {len(memory)}. Raise max_similarity or memory_size."
        )
    logger.info("%d of %d memory images are free of what is removed", len(left), len(memory))
    return left


def free_of(context: FitContext, memory: Memory, concepts: Sequence[Concept], *, max_similarity: float) -> Memory:
    """Return the memory without the images that would teach a removed concept again.

    An image is left out if its prompt names one of the concepts, if the text state of its prompt is too similar to that
    of the concept in the same sentence, or if the judge finds the concept in it.
    """
    backbone, judge = context.backbone, context.judge
    removed_prompts = list(
        dict.fromkeys(fill("a photo of a {}", name) for concept in concepts for name in concept.names)
    )
    close = text_similarity(backbone, memory.prompts, removed_prompts).amax(1) > max_similarity
    keep = [
        not near and not speaks_of(prompt, concepts)
        for near, prompt in zip(close.tolist(), memory.prompts, strict=True)
    ]
    left = memory.select(keep)
    if judge is None or not len(left):
        return left
    images = decoded(backbone, left.latents)
    known = [concept.target for concept in concepts if judge.knows(concept.target)]
    return left.select([not shown for shown in shows_any(judge, images, known)])


@torch.no_grad()
def decoded(backbone: Backbone, latents: Float[Tensor, "n c h w"], batch_size: int = 8) -> list[Image.Image]:
    """Return the images of latents that the pipeline's denoiser left."""
    vae, processor = backbone.pipe.vae, backbone.pipe.image_processor
    parts = [decoded_pixels(vae, part) for part in latents.split(batch_size)]
    return processor.postprocess(torch.cat(parts).float(), output_type="pil")
