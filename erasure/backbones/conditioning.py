"""Encoded prompts as a denoiser reads them, and the positions of words among their tokens."""
# pyright: reportUnknownMemberType=false
# Tokenizers of transformers have types in part.

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..arguments import checks_arguments
from ..errors import InputError
from ..prompts import words_of

Offsets = Sequence[tuple[int, int]]
"""For each token of a prompt its characters [start, end); (0, 0) for special tokens."""

PADDED: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
"""Arguments of a tokenizer in diffusers' pipelines."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedTokens:
    """The tokens of one text encoder, a row a prompt.

    Every row is padded to the encoder's length, and a prompt that is too long is cut so that its end-of-text token
    stays.

    Attributes:
        encoder: Name of the text encoder as a component.
        ids: Token ids.
        ends: Position of the first end-of-text token; all later positions are trailing states, which carry the whole
            prompt.
        offsets: For each row and token the characters [start, end) of the prompt; (0, 0) for special tokens.
        causal: Whether a state depends on no later token.
        read: For each row the positions [start, end) of the states that are the prompt's and that the denoiser reads: a
            template before the prompt and masked padding are outside. None is all of them.
    """

    encoder: str
    ids: Int[Tensor, "n tokens"]
    ends: Int[Tensor, " n"]
    offsets: tuple[tuple[tuple[int, int], ...], ...]
    causal: bool = True
    read: tuple[tuple[int, int], ...] | None = None

    def span(self, row: int) -> range:
        """Return the positions of a row whose states are the prompt's and are read."""
        return range(self.ids.shape[1]) if self.read is None else range(*self.read[row])

    def select(self, indices: Sequence[int]) -> "EncodedTokens":
        """Return the rows at `indices`, in that order."""
        rows = torch.tensor(list(indices), dtype=torch.long)
        return replace(
            self,
            ids=self.ids[rows.to(self.ids.device)],
            ends=self.ends[rows.to(self.ends.device)],
            offsets=tuple(self.offsets[i] for i in indices),
            read=None if self.read is None else tuple(self.read[i] for i in indices),
        )

    def to(self, device: torch.device | str | None) -> "EncodedTokens":
        """Return the tokens on `device`."""
        return replace(self, ids=self.ids.to(device=device), ends=self.ends.to(device=device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Text states that a denoiser reads row by row through one set of projections.

    Attributes:
        states: States, a row a prompt; a sentence vector is one token long.
        tokens: Tokens of each text encoder whose states follow one another in the sequence. Shorter than the states
            where the rest is padding that no encoder made; empty for a sentence vector.
    """

    states: Float[Tensor, "n tokens dim"]
    tokens: tuple[EncodedTokens, ...] = ()

    def parts(self) -> list[tuple[EncodedTokens, Float[Tensor, "n length dim"]]]:
        """Return the tokens of each text encoder with their states."""
        parts: list[tuple[EncodedTokens, Tensor]] = []
        start = 0
        for tokens in self.tokens:
            end = start + tokens.ids.shape[1]
            parts.append((tokens, self.states[:, start:end]))
            start = end
        return parts

    def read_states(self) -> Float[Tensor, "rows dim"]:
        """Return the states of all prompts that are theirs and that the denoiser reads, one after another."""
        parts = self.parts()
        if all(tokens.read is None for tokens, _ in parts):
            return self.states.flatten(0, 1)
        return torch.cat([states[i, list(tokens.span(i))] for tokens, states in parts for i in range(len(states))])

    def padded(self, length: int) -> "Stream":
        """Return rows of `length` tokens, with zeros that nothing reads behind a stream of one text encoder."""
        missing = length - self.states.shape[1]
        if missing <= 0 or len(self.tokens) != 1:
            return self
        tokens = self.tokens[0]
        read = tokens.read or ((0, tokens.ids.shape[1]),) * len(tokens.ids)
        offsets = tuple((*row, *((0, 0),) * missing) for row in tokens.offsets)
        longer = replace(tokens, ids=F.pad(tokens.ids, (0, missing)), offsets=offsets, read=read)
        return Stream(states=F.pad(self.states, (0, 0, 0, missing)), tokens=(longer,))

    def select(self, indices: Sequence[int]) -> "Stream":
        """Return the rows at `indices`, in that order."""
        rows = torch.tensor(list(indices), dtype=torch.long, device=self.states.device)
        return Stream(states=self.states[rows], tokens=tuple(tokens.select(indices) for tokens in self.tokens))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Stream":
        """Return the stream on `device`, its states as `dtype`; None keeps either."""
        return Stream(
            states=self.states.to(device=device, dtype=dtype), tokens=tuple(tokens.to(device) for tokens in self.tokens)
        )


TEXT, POOLED = "text", "pooled"
"""Names of the streams: the states of the tokens, and the sentence vector of models that are conditioned on one."""


@checks_arguments
@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioning:
    """Encoded prompts, one row each, as streams by name.

    Every model has the stream "text"; `states`, `ids`, `eot` and `offsets` are its states and the tokens of its first
    text encoder.

    Attributes:
        prompts: The texts, as they were encoded.
        streams: Text states by the name of the stream; see `Site.reads`.
    """

    prompts: tuple[str, ...]
    streams: Mapping[str, Stream]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def states(self) -> Float[Tensor, "n tokens dim"]:
        """States of the tokens."""
        return self.streams[TEXT].states

    @property
    def pooled(self) -> Float[Tensor, "n pooled"] | None:
        """Sentence vectors; None for a model that has none."""
        return self.streams[POOLED].states[:, 0] if POOLED in self.streams else None

    @property
    def ids(self) -> Int[Tensor, "n tokens"]:
        """Token ids of the first text encoder."""
        return self.streams[TEXT].tokens[0].ids

    @property
    def eot(self) -> Int[Tensor, " n"]:
        """Position of each row's first end-of-text token; without one, of the last state that is read."""
        tokens = self.streams[TEXT].tokens[0]
        if tokens.read is None:
            return tokens.ends
        last = torch.tensor([stop - 1 for _, stop in tokens.read], device=tokens.ends.device)
        return torch.minimum(tokens.ends, last)

    @property
    def end_states(self) -> Float[Tensor, "n dim"]:
        """State of each row at its first end-of-text token, where CLIP pools a sentence."""
        place = self.states.device
        return self.states[torch.arange(len(self), device=place), self.eot.to(place)]

    @property
    def offsets(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each row and token the characters [start, end) of the prompt; (0, 0) for special tokens."""
        return self.streams[TEXT].tokens[0].offsets

    def spans(self, row: int, phrase: str) -> list[list[int]]:
        """Return the token positions of each occurrence of `phrase` as whole words, in order.

        Case and runs of spaces do not count. An occurrence that truncation cut off, wholly or in part, is left out.
        """
        return spans_in(self.prompts[row], self.offsets[row], phrase)

    def tokens_of(self, row: int, start: int, end: int) -> list[int]:
        """Return the positions of the tokens that hold any of the prompt's characters [start, end)."""
        return tokens_at(self.offsets[row], start, end)

    def word_positions(self, row: int, phrase: str) -> list[int]:
        """Return the token positions of all occurrences of `phrase` in the prompt of `row`, in order.

        Raises:
            InputError: The prompt does not hold the phrase, or holds it only beyond what the model reads.
        """
        positions = [position for span in self.spans(row, phrase) for position in span]
        if not positions:
            raise InputError(
                f"phrase: expected words of the prompt {self.prompts[row]!r}, got {phrase!r}."
                f" Use words as they stand in its first {self.ids.shape[1] - 2} tokens."
            )
        return positions

    def is_cut(self, row: int) -> bool:
        """Return True if the prompt of `row` is longer than what any of the text encoders reads."""
        whole = len(self.prompts[row].rstrip())
        encoders = self.streams[TEXT].tokens
        return all(max((end for _, end in tokens.offsets[row]), default=0) < whole for tokens in encoders)

    def select(self, indices: Sequence[int]) -> "Conditioning":
        """Return the rows at `indices`, in that order; a row may be taken more than once."""
        return Conditioning(
            prompts=tuple(self.prompts[i] for i in indices),
            streams={name: stream.select(indices) for name, stream in self.streams.items()},
        )

    def expand(self, n: int) -> "Conditioning":
        """Return `n` copies of the only row.

        Raises:
            InputError: There is not exactly one row.
        """
        if len(self) != 1:
            raise InputError(f"conditioning: expected one row to repeat, got {len(self)}. Use select.")
        return self.select([0] * n)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Return the streams on `device`, their states as `dtype`; None keeps either."""
        return replace(self, streams={name: stream.to(device, dtype) for name, stream in self.streams.items()})

    def with_states(
        self, states: Float[Tensor, "n tokens dim"], pooled: Float[Tensor, "n pooled"] | None = None
    ) -> "Conditioning":
        """Return the same prompts with other states of the tokens, and other sentence vectors where they are given."""
        streams = {**self.streams, TEXT: replace(self.streams[TEXT], states=states)}
        if pooled is not None:
            streams[POOLED] = Stream(states=pooled[:, None])
        return replace(self, streams=streams)


_READ: ContextVar[Conditioning | None] = ContextVar("being_read", default=None)


@contextmanager
def reading(conditioning: Conditioning) -> Generator[None]:
    """Set the prompts of the images that are being made, which `being_read` returns, for the length of a `with`."""
    token = _READ.set(conditioning)
    try:
        yield
    finally:
        _READ.reset(token)


def being_read() -> Conditioning | None:
    """Return the prompts given to `reading`: a pipeline that was handed embeddings does not know their words."""
    return _READ.get()


@checks_arguments
def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Return the rows of all parts, in order; the parts are of one model."""
    first = parts[0]
    return Conditioning(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        streams={name: _concatenated([part.streams[name] for part in parts]) for name in first.streams},
    )


def _concatenated(streams: Sequence[Stream]) -> Stream:
    longest = max(stream.states.shape[1] for stream in streams)
    streams = [stream.padded(longest) for stream in streams]
    return Stream(
        states=torch.cat([stream.states for stream in streams]),
        tokens=tuple(
            replace(
                same[0],
                ids=torch.cat([tokens.ids for tokens in same]),
                ends=torch.cat([tokens.ends for tokens in same]),
                offsets=tuple(offsets for tokens in same for offsets in tokens.offsets),
                read=None if same[0].read is None else tuple(span for tokens in same for span in tokens.read or ()),
            )
            for same in zip(*(stream.tokens for stream in streams), strict=True)
        ),
    )


def tokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int | None = None
) -> tuple[Tensor, tuple[tuple[tuple[int, int], ...], ...]]:
    """Return ids and character offsets of the texts, padded and cut as diffusers' pipelines do.

    Args:
        tokenizer: The text encoder's tokenizer.
        texts: The prompts.
        length: Number of tokens of a row; None is the tokenizer's own.
    """
    longest = cast("int", tokenizer.model_max_length) if length is None else length
    settings: dict[str, Any] = {**PADDED, "return_tensors": None}
    # Lists: transformers makes tensors of them, of the offsets too, at twice the cost of the reading.
    batch = tokenizer(list(texts), max_length=longest, return_offsets_mapping=True, **settings)
    offsets = tuple(tuple((start, end) for start, end in row) for row in batch["offset_mapping"])
    return torch.tensor(batch["input_ids"], dtype=torch.int64), offsets


def first_end_of_text(ids: Int[Tensor, "n tokens"], tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, " n"]:
    """Return the position of each row's first end-of-text token, found by its id.

    The largest id will not do: tokens that were added after training have larger ones.
    """
    return (ids == cast("int", tokenizer.eos_token_id)).int().argmax(dim=1)


def spans_in(prompt: str, offsets: Offsets, phrase: str) -> list[list[int]]:
    """Return the token positions of each occurrence of a phrase in a prompt; see `Conditioning.spans`."""
    words = words_of(phrase)
    if not words:
        raise InputError(f"phrase: expected words, got {phrase!r}. Name what to look for in the prompt.")
    occurrences = re.finditer(rf"(?<!\w){words}(?!\w)", prompt, flags=re.IGNORECASE)
    covered = max((end for _, end in offsets), default=0)
    return [tokens_at(offsets, match.start(), match.end()) for match in occurrences if match.end() <= covered]


def tokens_at(offsets: Offsets, start: int, end: int) -> list[int]:
    """Return the positions of the tokens that hold any of a prompt's characters [start, end)."""
    return [position for position, (first, last) in enumerate(offsets) if first < end and last > start]
