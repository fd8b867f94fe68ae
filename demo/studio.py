"""The one loaded model: whoever changes it or draws with it holds the lock, so that edits never meet."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from PIL.Image import Image

from erasure.backbones import backbone_of
from erasure.concept import Kind
from erasure.judge import Judge
from erasure.profile import ModelProfile, profile_of
from erasure.progress import OnProgress
from erasure.runs.sampling import own_sampling
from erasure.runs.schema import MeasureSettings
from erasure.sampling import Pair, SamplingSettings, sample_pairs
from erasure.suggestions import what_to_draw, what_to_keep

from ..eval.images.attention_maps import AttentionTrace
from ..eval.judges.readings import Seen

_REMEMBERED = 256
"""Pictures of the original that are kept, so that nobody waits for them twice."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Pictures before and after.

    Attributes:
        pairs: Prompt and seed of each.
        before: By the original.
        after: By what stands; None where nothing was drawn yet.
        seen: What is read of each.
        removed: What stood removed.
        judge: Name of the judge; "" for none.
        cut: Prompts of which the model reads the beginning only.
    """

    pairs: tuple[Pair, ...]
    before: tuple[Image, ...]
    after: tuple[Image, ...] | None
    seen: tuple[tuple[Seen, ...], ...]
    removed: tuple[str, ...] = ()
    judge: str = ""
    cut: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attended:
    """Where words look, with and without A-STAR.

    Attributes:
        prompt: What was drawn.
        names: The concepts.
        plain: Without.
        guided: With.
        sheet: All of it in one picture.
    """

    prompt: str
    names: tuple[str, ...]
    plain: AttentionTrace
    guided: AttentionTrace
    sheet: Image


class Studio:
    """The model and what is known of it.

    Args:
        pipe: The loaded pipeline.
        name: What loads it.
        device: Where it is.
    """

    def __init__(self, pipe: Any, name: str, device: str) -> None:
        self.pipe, self.name, self.device = pipe, name, device
        self.lock = threading.RLock()
        self._originals: OrderedDict[tuple[Any, ...], Image] = OrderedDict()
        # Suggestions are made while others draw. A fast tokenizer serves one thread at a time.
        self._words = copy.copy(pipe)
        for part in ("tokenizer", "tokenizer_2"):
            if getattr(pipe, part, None) is not None:
                object.__setattr__(self._words, part, copy.deepcopy(getattr(pipe, part)))
        self._words_lock = threading.Lock()

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
        """How it samples if nobody says otherwise."""
        # On a CPU a batch of a large model takes minutes, in which nothing could be told or stopped.
        batch = self.profile.sampling.batch_size or (4 if self.device != "cpu" else 1)
        return own_sampling(self.name, MeasureSettings(batch_size=batch))

    def sampling(self, steps: int, guidance_scale: float) -> SamplingSettings:
        """Return its sampler with other steps and guidance."""
        return replace(self.sampler, steps=steps, guidance_scale=guidance_scale)

    def judge(self) -> Judge | None:
        """Return the judge of its images; None if there is none."""
        return self.profile.judge(self.device)

    def to_keep(self, targets: Sequence[str], n: int = 8, *, kind: Kind = "object") -> list[str]:
        """Suggest what to keep beside a removal."""
        with self._words_lock:
            return what_to_keep(self._words, self.name, targets, n, kind=kind)

    def to_draw(self, targets: Sequence[str], *, kind: Kind = "object") -> list[str]:
        """Suggest prompts that show a removal."""
        return what_to_draw(self.name, targets[0], kind=kind) if targets else []

    def cut(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return the prompts of which the model reads the beginning only; the caller holds the lock."""
        states = backbone_of(self.pipe).encode(prompts)
        return tuple(prompt for row, prompt in enumerate(prompts) if states.is_cut(row))

    def originals(
        self, pairs: Sequence[Pair], sampler: SamplingSettings, on_progress: OnProgress | None
    ) -> list[Image]:
        """Return the original's pictures, those that are not remembered made anew; the caller holds the lock.

        Args:
            pairs: Prompts and seeds.
            sampler: How they are made.
            on_progress: Receives the number of images as they are made.
        """
        keys = [(*pair, sampler.steps, sampler.guidance_scale) for pair in pairs]
        missing = [(key, pair) for key, pair in zip(keys, pairs, strict=True) if key not in self._originals]
        made = sample_pairs(self.pipe, [pair for _, pair in missing], sampler, on_progress)
        fresh = dict(zip((key for key, _ in missing), made, strict=True))
        found = [fresh[key] if key in fresh else self._originals[key] for key in keys]
        for key, image in zip(keys, found, strict=True):
            self._originals[key] = image
            self._originals.move_to_end(key)
        while len(self._originals) > _REMEMBERED:
            self._originals.popitem(last=False)
        return found
