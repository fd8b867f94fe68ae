"""Priming: what a removal adds to unrelated images (after Outlandish, arXiv:2504.09522, for language models)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field

from erasure.errors import InputError
from erasure.prompts import fill, speaks_of
from erasure.registry import Exactness
from erasure.sampling import Pair, sample_pairs

from ..stats.allocation import noise_seed
from .base import Access, Aim, OneDose, Outcome, Probe, Subject, Suite


@dataclass(frozen=True, kw_only=True)
class Priming(Probe):
    """Images of prompts that name neither the concept nor its anchor: how often do they show one of the two?

    What a model learns surfaces where it was not taught. `anchor` is the share of images that show the anchor, for a
    removal with one that the judge knows; `ghost` the share that show the removed concept. Both are side effects, read
    as their difference to the original on the same seeds; no anchor means no priming by it.

    Differs from the paper: no regression on the likeness of anchor and prompt.

    Attributes:
        doses: Always 1: the reading has no dose.
        images: Images, > 0.
    """

    name: ClassVar[str] = "priming"
    source: ClassVar[str] = "arXiv:2504.09522"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "inside"
    dose_unit: ClassVar[str] = "reading"
    reads_anchor: ClassVar[bool] = True
    suites: ClassVar[Mapping[Suite, Mapping[str, Any]]] = MappingProxyType({"standard": {}, "full": {"images": 300}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"images": 3})

    doses: OneDose = (1.0,)
    images: Annotated[int, Field(ge=1)] = 64

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim = subject.aim
        pairs = self.unrelated(aim)
        subject.report(0, 1, f"{len(pairs)} unrelated prompts")
        images = sample_pairs(subject.pipe, pairs, aim.sampling)
        shared: dict[str, Any] = {"dose": self.doses[0], "images": images, "pairs": pairs, "side_effect": True}
        yield Outcome(part="ghost", label="reading", **shared)
        if aim.concept.anchor:
            yield Outcome(part="anchor", shows=aim.concept.anchor, label="reading", **shared)

    def unrelated(self, aim: Aim) -> list[Pair]:
        """Return prompts, with a seed each, that name neither the concept nor the anchor; the empty one in turn.

        Raises:
            InputError: Nothing is known that the model should keep.
        """
        named = [aim.concept.target, *aim.concept.aliases, *filter(None, [aim.concept.anchor])]
        words = [type(aim.concept)(target=name) for name in named]
        known = [prompt for _, prompt, _ in aim.kept] + [fill("a photo of a {}", name) for name, *_ in aim.kept]
        prompts = [prompt for prompt in dict.fromkeys(known) if not speaks_of(prompt, words)]
        if not prompts:
            raise InputError(
                f"priming: expected kept concepts beside {aim.concept.target!r}, got none. Name some to preserve."
            )
        prompts.append("")
        return [
            (prompts[i % len(prompts)], noise_seed(f"unrelated {prompts[i % len(prompts)]}", i, aim.seed))
            for i in range(self.images)
        ]
