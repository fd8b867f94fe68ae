"""Where the concepts of a prompt are among its tokens."""

from collections.abc import Mapping, Sequence

from ..backbones.conditioning import Offsets, spans_in
from ..errors import InputError


def positions_in(prompt: str, offsets: Offsets, concepts: Sequence[str]) -> dict[str, list[int]]:
    """Return the token positions of each concept that the prompt holds, those of all its occurrences in order.

    Words that the tokenizer splits and phrases of several words have several positions.

    Raises:
        InputError: Two concepts share a token: neither could be moved without the other.
    """
    found = {
        concept: positions
        for concept in dict.fromkeys(concepts)
        if (positions := [at for span in spans_in(prompt, offsets, concept) for at in span])
    }
    owners(found, prompt)
    return found


def owners(positions: Mapping[str, Sequence[int]], prompt: str) -> dict[int, str]:
    """Return which concept each token is of.

    Raises:
        InputError: A token is of two.
    """
    owner: dict[int, str] = {}
    for concept, places in positions.items():
        for at in places:
            if at in owner:
                raise InputError(
                    f"concepts: expected concepts of tokens of their own in {prompt!r}, got {owner[at]!r} and"
                    f" {concept!r}. Name one of them."
                )
            owner[at] = concept
    return owner
