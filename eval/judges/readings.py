"""Readings of single images: the probability that each shows the concepts of its prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from erasure.concept import Concept
from erasure.judge import Judge
from erasure.profile import ModelProfile
from erasure.prompts import speaks_of

_MOST = 3
"""Number of concepts read of one image, at most."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Probability that an image shows a concept, beside the original's image of the same prompt and seed.

    Attributes:
        name: Name of the concept.
        before: Probability for the original's image, in [0, 1].
        after: Probability for the edited model's image, in [0, 1].
        removed: Whether the concept was removed.
    """

    name: str
    before: float
    after: float
    removed: bool

    @property
    def good(self) -> bool | None:
        """Whether the outcome is the intended one; None if the original does not show the concept either."""
        if self.before < 0.5 and not (self.removed and self.after >= 0.5):
            return None
        return (self.after >= 0.5) != self.removed


def named_in(
    prompt: str, removed: Sequence[Concept], *, profile: ModelProfile, kept: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the concepts to read of a prompt's image: those that it names, the removed ones first.

    Args:
        prompt: The prompt.
        removed: Removed concepts.
        profile: Profile of the model.
        kept: Concepts that should stay, for a model whose concepts are not known.
    """
    named = profile.named_in(prompt) or [name for name in kept if speaks_of(prompt, [Concept(target=name)])]
    removed_names = [concept.target for concept in removed if concept.target in named or speaks_of(prompt, [concept])]
    return tuple(dict.fromkeys([*removed_names, *named]))[:_MOST]


def read(
    judge: Judge | None,
    prompts: Sequence[str],
    before: Sequence[Image],
    after: Sequence[Image],
    removed: Sequence[Concept],
    *,
    profile: ModelProfile,
    kept: Sequence[str] = (),
) -> list[tuple[Seen, ...]]:
    """Return the readings of each pair of images; none without a judge or without a concept in the prompt.

    Args:
        judge: Judge of the images.
        prompts: Prompt of each pair.
        before: Images of the original.
        after: Images of the edited model.
        removed: Removed concepts.
        profile: Profile of the model.
        kept: Concepts that should stay, for a model whose concepts are not known.
    """
    if judge is None:
        return [()] * len(prompts)
    named = [named_in(prompt, removed, profile=profile, kept=kept) for prompt in prompts]
    removed_names = {concept.target for concept in removed}
    readings: dict[tuple[int, str], Seen] = {}
    for name in dict.fromkeys(name for names in named for name in names):
        rows = [i for i, names in enumerate(named) if name in names]
        old, new = (judge.probabilities([images[i] for i in rows], name).tolist() for images in (before, after))
        for i, was, now in zip(rows, old, new, strict=True):
            readings[i, name] = Seen(name=name, before=was, after=now, removed=name in removed_names)
    return [tuple(readings[i, name] for name in names) for i, names in enumerate(named)]
