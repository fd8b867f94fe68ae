"""The one loaded model; a lock is held while it is changed or sampled from."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from diffusers import DiffusionPipeline
from PIL.Image import Image

from erasure.backbones import backbone_of
from erasure.concept import Concept, Kind
from erasure.judge import Judge
from erasure.profile import ModelProfile, profile_of
from erasure.progress import OnProgress
from erasure.prompts import fill
from erasure.sampling import Pair, SamplingSettings, sample_pairs
from erasure.suggestions import suggested_preserve, suggested_prompts

from . import limits

_REMEMBERED = 256
"""Number of images of the original, and of suggestions, that are cached."""


class Studio:
    """The loaded model with its profile.

    Args:
        pipe: The loaded pipeline.
        name: Name of the model, as for `load_model`.
        device: Device of the model.
    """

    def __init__(self, pipe: DiffusionPipeline, name: str, device: str) -> None:
        self.pipe, self.name, self.device = pipe, name, device
        self.lock = threading.RLock()
        self._originals: OrderedDict[tuple[Any, ...], Image] = OrderedDict()
        # Suggestions are made while other visitors sample. A fast tokenizer serves one thread at a time.
        self._words = copy.copy(pipe)
        for part in ("tokenizer", "tokenizer_2"):
            if getattr(pipe, part, None) is not None:
                object.__setattr__(self._words, part, copy.deepcopy(getattr(pipe, part)))
        self._words_lock = threading.Lock()
        self._near = lru_cache(_REMEMBERED)(self._nearest)

    @property
    def profile(self) -> ModelProfile:
        """Profile of the model."""
        return profile_of(self.name)

    @property
    def known(self) -> tuple[str, ...]:
        """Concepts that the model is known to draw; empty where that is not known."""
        return self.profile.concepts

    @cached_property
    def sampler(self) -> SamplingSettings:
        """Default sampling settings of the model on its device."""
        # On a CPU a batch of a large model takes minutes, in which nothing could be told or stopped.
        batch = self.profile.sampling.batch_size or (4 if self.device != "cpu" else 1)
        return SamplingSettings.of(self.name, batch_size=batch)

    def sampling(self, steps: int, guidance_scale: float) -> SamplingSettings:
        """Return the sampler with other steps and guidance scale."""
        return replace(self.sampler, steps=steps, guidance_scale=guidance_scale)

    def judge(self) -> Judge | None:
        """Return the judge of its images; None if there is none."""
        return self.profile.judge(self.device)

    def to_keep(self, targets: Sequence[str], n: int = 8, *, kind: Kind = "object") -> list[str]:
        """Suggest concepts to preserve beside a removal."""
        return list(self._near(tuple(targets), n, kind))

    def _nearest(self, targets: tuple[str, ...], n: int, kind: Kind) -> list[str]:
        with self._words_lock:
            return suggested_preserve(self._words, self.name, targets, n, kind=kind)

    def to_draw(self, targets: Sequence[str], *, kind: Kind = "object", removed: Sequence[str] = ()) -> list[str]:
        """Suggest prompts that show a removal beside earlier ones."""
        few = targets[: limits.PROMPTS // 2]
        near = [] if self.known else self.to_keep(few, kind=kind)
        return suggested_prompts(self.name, few, near, kind=kind, removed=removed)

    def to_look_at(self, removed: Sequence[Concept]) -> list[str]:
        """Suggest prompts that show what is removed, the last first; none if nothing is."""
        names = [concept.target for concept in reversed(removed)]
        return self.to_draw(names, kind=removed[-1].kind, removed=names) if names else []

    def to_attend(self, removed: Sequence[Concept]) -> tuple[str, str] | None:
        """Suggest a prompt of the last removed object and its neighbour, and the two words; None without one."""
        if not removed or (self.profile.kind(removed[-1].target) or removed[-1].kind) != "object":
            return None
        target, names = removed[-1].target, {concept.target for concept in removed}
        other = next((name for name in self.to_keep([target]) if name not in names), None)
        if other is None:
            return None
        return f"{fill('a {}', target)} and {fill('a {}', other)}", f"{target}, {other}"

    def cut(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return the prompts that are longer than the input of the text encoder; the caller holds the lock."""
        states = backbone_of(self.pipe).encode(prompts)
        return tuple(prompt for row, prompt in enumerate(prompts) if states.is_cut(row))

    def originals(
        self, pairs: Sequence[Pair], sampler: SamplingSettings, on_progress: OnProgress | None
    ) -> list[Image]:
        """Return images of the original, from the cache or sampled; the caller holds the lock.

        Args:
            pairs: Prompts and seeds.
            sampler: Sampling settings.
            on_progress: Receives the number of images as they are made.
        """
        keys = [(*pair, sampler.steps, sampler.guidance_scale) for pair in pairs]
        missing = [(key, pair) for key, pair in zip(keys, pairs, strict=True) if key not in self._originals]
        sampled = sample_pairs(self.pipe, [pair for _, pair in missing], sampler, on_progress)
        fresh = dict(zip((key for key, _ in missing), sampled, strict=True))
        images = [fresh[key] if key in fresh else self._originals[key] for key in keys]
        for key, image in zip(keys, images, strict=True):
            self._originals[key] = image
            self._originals.move_to_end(key)
        while len(self._originals) > _REMEMBERED:
            self._originals.popitem(last=False)
        return images
