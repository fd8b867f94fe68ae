"""The models of an evaluation, side by side: what is judged, and the reference rows that its numbers are read against.

An erasure score alone says little: a destroyed model erases everything. So the original, the original with a negative
prompt, and a destroyed model are always measured on the same prompts and seeds, and a gold standard where one exists.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.progress import OnProgress
from erasure.sampling import Pair, SamplingSettings

from ..images.manifest import Manifest
from ..images.store import ImageStore, fill

ERASED, ORIGINAL, NEGATIVE, DESTROYED, GOLD = "erased", "original", "negative_prompt", "destroyed", "gold"
STRENGTH = 1.0
"""Standard deviation of the destroyed model's noise, in that of each weight tensor: nothing can be recognised."""


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of an evaluation.

    Attributes:
        name: "erased", "original", "negative_prompt", "destroyed", "gold".
        pipe: The pipeline, unedited.
        about: Description.
        applied: Puts in force what makes the row, and takes it back.
        edit: Id of what is in force, see `images.manifest.Manifest`.
        negative_prompt: In place of the unconditional prompt.
        folder: Folder of its images; None is the shared cache.
    """

    name: str
    pipe: DiffusionPipeline
    about: str
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext
    edit: str = ""
    negative_prompt: str = ""
    folder: Path | None = None

    def store(self, pairs: Sequence[Pair], sampler: SamplingSettings) -> ImageStore:
        """Return where the row's image of each prompt and seed is or will be; none is made."""
        prompts, seeds = [prompt for prompt, _ in pairs], [seed for _, seed in pairs]
        with self.applied():
            sampled = replace(sampler, negative_prompt=self.negative_prompt)
            manifest = Manifest.of(self.pipe, prompts, seeds, sampled, self.edit)
        return ImageStore(folder=(self.folder or image_cache()) / manifest.id, manifest=manifest)

    def fill(self, store: ImageStore, batch_size: int, on_progress: OnProgress | None = None) -> ImageStore:
        """Make the row's images that its store lacks, and return it."""
        with self.applied():
            return fill(self.pipe, store, batch_size=batch_size, on_progress=on_progress)


def image_cache() -> Path:
    """Return where images of unedited models are kept for later evaluations: $ERASURE_CACHE or ~/.cache/erasure."""
    return Path(os.environ.get("ERASURE_CACHE") or Path.home() / ".cache" / "erasure") / "pictures"


@checks_arguments
def reference_variants(pipe: DiffusionPipeline, removed: Sequence[str]) -> list[Variant]:
    """Return the original, the original with the removed names as negative prompt, and the destroyed model."""
    negative = ", ".join(removed)
    return [
        Variant(name=ORIGINAL, pipe=pipe, about="the original model"),
        Variant(
            name=NEGATIVE, pipe=pipe, about=f"the original, negative prompt {negative!r}", negative_prompt=negative
        ),
        Variant(
            name=DESTROYED,
            pipe=pipe,
            about=f"the original, noise of {STRENGTH:g} standard deviations on every weight tensor of the denoiser",
            applied=lambda: destroyed(pipe),
        ),
    ]


@contextmanager
def destroyed(pipe: DiffusionPipeline, strength: float = STRENGTH) -> Generator[None]:
    """Put Gaussian noise on the denoiser's weight tensors of two and more dimensions; on exit they are as before.

    Args:
        pipe: The pipeline.
        strength: Standard deviation of the noise, in that of each tensor, > 0.
    """
    weights = {name: p for name, p in backbone_of(pipe).denoiser.named_parameters() if p.ndim > 1}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
                weight.add_(strength * weight.std() * noise.to(weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
