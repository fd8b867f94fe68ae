"""Prompts of the objective `absent`, encoded once, by row."""

from collections.abc import Sequence

import torch

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning, concatenate
from ...concept import Concept, normalized
from ...prompts import GENERIC, fill, speaks_of, templates
from ..trajectories import encoded

_AT_ONCE = 64
_RANDOM_WORDS = (1, 2, 3, 4, 6, 8)


class PromptTable:
    """Prompts in the order in which they were first asked for."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}

    def row(self, prompt: str) -> int:
        """Return the row of a prompt, which is added if it is new; "" is the model's unconditional prompt."""
        return self._rows.setdefault(prompt, len(self._rows))

    def encoded(self, backbone: Backbone) -> Conditioning:
        """Return all prompts, encoded."""
        prompts = list(self._rows)
        parts = [encoded(backbone, prompts[i : i + _AT_ONCE]) for i in range(0, len(prompts), _AT_ONCE)]
        return concatenate(parts)


def asking_names(concept: Concept, earlier: Sequence[Concept]) -> list[str]:
    """Return the names that ask for a concept: its own, and those of earlier removals that draw it as their anchor.

    Args:
        concept: Concept to remove.
        earlier: Earlier removals, in order. An anchor of an anchor counts too.
    """
    names = list(concept.names)
    for other in reversed(earlier):
        if normalized(other.anchor) in map(normalized, names):
            names += [name for name in other.names if name not in names]
    return names


def kept_pairs(concept: Concept, concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    """Return prompts of what a concept preserves, each with its name; everyday things where it preserves nothing."""
    # Names may be of any kind, and most are objects.
    sentences = dict.fromkeys([*templates(concept.kind), *templates("object")])
    pairs = [(fill(sentence, name), name) for name in concept.preserve for sentence in sentences]
    pairs = pairs or [(name, name) for name in GENERIC]
    return [(prompt, name) for prompt, name in pairs if not speaks_of(prompt, concepts)]


def random_prompts(backbone: Backbone, n: int, concepts: Sequence[Concept], generator: torch.Generator) -> list[str]:
    """Return texts of random tokens that name none of the concepts."""
    tokenizer = next(iter(backbone.tokenizers().values()))
    prompts: list[str] = []
    for i in range(n):
        length = _RANDOM_WORDS[i % len(_RANDOM_WORDS)]
        ids = torch.randint(len(tokenizer), (length,), generator=generator).tolist()
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        prompts += [text] if text.strip() and not speaks_of(text, concepts) else []
    return prompts or [""]
