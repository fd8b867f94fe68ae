"""Prompts that ask for an instance alone and composed, and for what should stay as it was."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from erasure.profile import ModelProfile
from erasure.prompts import fill

Group = Literal["alone", "composed", "class", "siblings", "unrelated"]
"""The instance by itself; in styles, places and company; then plain prompts of its class, of what is like it, of the
rest."""
KEPT: tuple[Group, ...] = ("class", "siblings", "unrelated")


@dataclass(frozen=True, kw_only=True)
class InstanceRequest:
    """One image to be made by every state of the model.

    Attributes:
        group: Group of the request.
        prompt: With `{}` where the instance goes; the original, which does not know it, is asked for the class.
        seed: Seed of the noise, >= 0.
        name: Concept that the image should show.
        parts: Further parts that the image should show.
    """

    group: Group
    prompt: str
    seed: int
    name: str
    parts: tuple[str, ...] = ()

    def filled(self, phrase: str) -> str:
        """Return the prompt with a phrase for the instance."""
        return fill(self.prompt, phrase) if "{}" in self.prompt else self.prompt

    def texts(self, class_word: str) -> list[str]:
        """Return the texts to compare the image with: the whole prompt, and each part alone."""
        whole = self.filled(class_word)
        return [whole, *((fill("a photo of a {}", class_word), *self.parts) if self.parts else ())]


# The prompts of the paper's figures are of this kind; these are ours.
_CONTEXTS = (
    ("a photo of a {} on the beach", "the beach"),
    ("a photo of a {} in the snow", "snow"),
    ("a photo of a {} with a mountain in the background", "a mountain"),
    ("a photo of a {} wearing a red hat", "a red hat"),
    ("a photo of a {} wearing headphones", "headphones"),
    ("a photo of a {} beside a bicycle", "a bicycle"),
    ("a watercolor painting of a {}", "a watercolor painting"),
    ("a pencil drawing of a {}", "a pencil drawing"),
)
_UNRELATED = (
    "a photo of a house",
    "a photo of a tree",
    "a photo of a car",
    "a photo of a bridge",
    "a photo of a table",
)


def known_requests(
    profile: ModelProfile,
    class_word: str,
    *,
    composed: int,
    kept: int,
    first_seed: int = 3_000_000,
    without: Sequence[str] = (),
) -> list[InstanceRequest]:
    """Return the prompts for a model whose concepts are known: the instance in every context, and all that should stay.

    Args:
        profile: Profile of the model.
        class_word: Class of the instance.
        composed: Number of images of the instance in company, and of it alone.
        kept: Number of images of each of the three groups that should stay.
        first_seed: Seed of the first image's noise; they count on from it.
        without: Individuals that are not asked for.
    """
    contexts = profile.contexts(class_word)
    turns = [contexts[i % len(contexts)] for i in range(composed)]
    siblings = [name for name in profile.relatives(class_word) if name not in without]
    unrelated = [name for name in profile.concepts if name not in (class_word, *siblings, *without)]
    entries: list[tuple[Group, str, str, tuple[str, ...]]] = [
        *(("alone", "a photo of a {}", class_word, ()) for _ in range(composed)),
        *(("composed", prompt, class_word, parts) for prompt, parts in turns),
    ]
    for group, names in (("class", [class_word]), ("siblings", siblings), ("unrelated", unrelated)):
        for index in range(kept):
            name = names[index % len(names)]
            prompt = profile.prompts(name, index // len(names) + 1, seed=1)[-1]
            entries.append((group, prompt, name, ()))  # type: ignore[arg-type]
    return _numbered(entries, first_seed)


def class_requests(
    class_word: str, siblings: Sequence[str], *, composed: int, kept: int, first_seed: int = 3_000_000
) -> list[InstanceRequest]:
    """Return the requests for a model of unknown concepts; see `known_requests`."""
    entries: list[tuple[Group, str, str, tuple[str, ...]]] = [
        *(("alone", "a photo of a {}", class_word, ()) for _ in range(composed)),
        *(("composed", text, class_word, (part,)) for text, part in (_CONTEXTS * composed)[:composed]),
        *(("class", fill("a photo of a {}", class_word), class_word, ()) for _ in range(kept)),
        *(
            ("siblings", fill("a photo of a {}", name), name, ())
            for name in (list(siblings) * kept)[: kept if siblings else 0]
        ),
        *(("unrelated", text, text.removeprefix("a photo of a "), ()) for text in (_UNRELATED * kept)[:kept]),
    ]
    return _numbered(entries, first_seed)


def _numbered(entries: Sequence[tuple[Group, str, str, tuple[str, ...]]], first_seed: int) -> list[InstanceRequest]:
    return [
        InstanceRequest(group=group, prompt=prompt, seed=first_seed + i, name=name, parts=parts)
        for i, (group, prompt, name, parts) in enumerate(entries)
    ]
