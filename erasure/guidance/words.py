"""Positions of concepts among the tokens of a prompt."""

from collections.abc import Mapping, Sequence

from ..backbones.conditioning import Offsets, spans_in
from ..errors import InputError


def positions_in(
    prompt: str, offsets: Offsets, concepts: Sequence[str], *, longest: bool = False
) -> dict[str, list[int]]:
    """Return the token positions of each concept that the prompt holds, those of all its occurrences in order.

    Words that the tokenizer splits and phrases of several words have several positions.

    Args:
        prompt: The prompt.
        offsets: Character offsets of its tokens.
        concepts: Words or phrases.
        longest: Whether a token that belongs to two concepts counts for the longer phrase ("tabby cat" before "cat").

    Raises:
        InputError: Two concepts share a token, and `longest` is False: neither could be moved without the other.
    """
    spans = {concept: spans_in(prompt, offsets, concept) for concept in dict.fromkeys(concepts)}
    if longest:
        spans = _longest_first(spans)
    positions = {concept: [i for span in each for i in span] for concept, each in spans.items()}
    positions = {concept: each for concept, each in positions.items() if each}
    owners(positions, prompt)
    return positions


def _longest_first(spans: Mapping[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Return the spans without those that overlap one of a longer phrase, in the same order."""
    taken: set[int] = set()
    kept: dict[str, list[list[int]]] = {}
    for concept in sorted(spans, key=len, reverse=True):
        kept[concept] = [span for span in spans[concept] if taken.isdisjoint(span)]
        taken.update(i for span in kept[concept] for i in span)
    return {concept: kept[concept] for concept in spans}


def owners(positions: Mapping[str, Sequence[int]], prompt: str) -> dict[int, str]:
    """Return which concept each token is of.

    Raises:
        InputError: A token is of two.
    """
    owner: dict[int, str] = {}
    for concept, places in positions.items():
        for position in places:
            if position in owner:
                raise InputError(
                    f"concepts: expected concepts of tokens of their own in {prompt!r}, got {owner[position]!r} and"
                    f" {concept!r}. Name one of them."
                )
            owner[position] = concept
    return owner
