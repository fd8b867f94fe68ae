"""Prompts of which some states are read, and no others kept: many prompts in little memory."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .conditioning import Conditioning, EncodedTokens, Stream

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


PickedPart = tuple[EncodedTokens, PickedStates]
"""Tokens of a text encoder and some of their states."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PickedTexts:
    """Prompts with some of their states.

    Attributes:
        prompts: The texts, as they were encoded.
        parts: States of the tokens of each text encoder that are read in a stream, by its name.
        vectors: Sentence vectors by the name of their stream, a row a prompt.
    """

    prompts: tuple[str, ...]
    parts: Mapping[str, tuple[PickedPart, ...]]
    vectors: Mapping[str, Float[Tensor, "n dim"]]

    @classmethod
    def of(cls, texts: Conditioning, places_of: PlacesOf) -> "PickedTexts":
        """Return some of the states of prompts that were read whole."""
        tokens = {name: stream for name, stream in texts.streams.items() if stream.tokens}
        return cls(
            prompts=texts.prompts,
            parts={name: _parts_of(texts.prompts, stream, places_of) for name, stream in tokens.items()},
            vectors={name: stream.states[:, 0].cpu() for name, stream in texts.streams.items() if name not in tokens},
        )

    def widths(self) -> dict[str, int]:
        """Return the width of the states of each stream."""
        tokens = {name: parts[0][1].states.shape[-1] for name, parts in self.parts.items()}
        return tokens | {name: vectors.shape[-1] for name, vectors in self.vectors.items()}

    def states_of(self, row: int) -> dict[str, list[tuple[str, Float[Tensor, "n dim"]]]]:
        """Return by stream the name of each text encoder with all states of a prompt, which were picked.

        A sentence vector is of no encoder.
        """
        vectors = {name: [("", vectors[[row]])] for name, vectors in self.vectors.items()}
        return vectors | {
            name: [
                (tokens.encoder, states.states[[states.number[row, position] for position in tokens.span(row)]])
                for tokens, states in parts
            ]
            for name, parts in self.parts.items()
        }


def _parts_of(texts: tuple[str, ...], stream: Stream, places_of: PlacesOf) -> tuple[PickedPart, ...]:
    parts = []
    for tokens, states in stream.parts():
        places = sorted(set(places_of(texts, tokens)))
        rows, positions = torch.tensor(places, dtype=torch.long, device=states.device).reshape(len(places), 2).T
        number = {place: i for i, place in enumerate(places)}
        parts.append((tokens, PickedStates(states=states[rows, positions].cpu(), number=number)))
    return tuple(parts)
