"""Prompts of which some states are read, and no others kept: many prompts in little memory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .conditioning import EncodedTokens

Place = tuple[int, int]
"""Row of a prompt and position in it."""
PlacesOf = Callable[[tuple[str, ...], EncodedTokens], Iterable[Place]]
"""Function of prompts, as they are encoded, and their tokens to the places that are read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PickedStates:
    """States at some places of prompts.

    Attributes:
        states: The states, one after another.
        number: Number of a place's state among them.
    """

    states: Float[Tensor, "k dim"]
    number: Mapping[Place, int]

    def __getitem__(self, place: Place) -> Float[Tensor, " dim"]:
        return self.states[self.number[place]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PickedTexts:
    """Prompts with some of their states.

    Attributes:
        prompts: The texts, as they were encoded.
        tokens: Their tokens.
        states: States of tokens.
        vectors: Sentence vectors by the name of their stream, a row a prompt.
    """

    prompts: tuple[str, ...]
    tokens: EncodedTokens
    states: PickedStates
    vectors: Mapping[str, Float[Tensor, "n dim"]]
