"""What a denoiser reads: the states of a batch of prompts, and where in them a word is."""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError

Offsets = Sequence[tuple[int, int]]
"""For each token of a prompt its characters [start, end); (0, 0) for special tokens."""

PADDED: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
"""How diffusers' pipelines ask a tokenizer for a prompt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TextStates:
    """The encoded prompts, one row each.

    Every row is padded to the model's length, and a prompt that is too long is cut so that its end-of-text token stays.

    Attributes:
        prompts: The texts, as they were encoded.
        states: What cross-attention reads.
        pooled: The sentence vector, for models that are conditioned on one (SDXL).
        ids: Token ids of the first tokenizer.
        eot: Position of the first end-of-text token; all later positions are trailing states, which carry the
            whole prompt.
        offsets: For each row and token the characters [start, end) of the prompt; (0, 0) for special tokens.
    """

    prompts: tuple[str, ...]
    states: Float[Tensor, "n tokens dim"]
    pooled: Float[Tensor, "n pooled"] | None
    ids: Int[Tensor, "n tokens"]
    eot: Int[Tensor, " n"]
    offsets: tuple[tuple[tuple[int, int], ...], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def spans(self, row: int, phrase: str) -> list[list[int]]:
        """Return the token positions of each occurrence of `phrase` as whole words, in order.

        Case and runs of spaces do not count. An occurrence that truncation cut off, wholly or in part, is not given.
        """
        return spans_in(self.prompts[row], self.offsets[row], phrase)

    def tokens_of(self, row: int, start: int, end: int) -> list[int]:
        """Return the positions of the tokens that hold any of the prompt's characters [start, end)."""
        return tokens_at(self.offsets[row], start, end)

    def word_positions(self, row: int, phrase: str) -> list[int]:
        """Return the token positions of `phrase` in the prompt of `row`, those of all its occurrences in order.

        Raises:
            InputError: The prompt does not hold the phrase, or holds it only beyond what the model reads.
        """
        positions = [at for span in self.spans(row, phrase) for at in span]
        if not positions:
            raise InputError(
                f"phrase: expected words of the prompt {self.prompts[row]!r}, got {phrase!r}."
                f" Use words as they stand in its first {self.ids.shape[1] - 2} tokens."
            )
        return positions

    def is_cut(self, row: int) -> bool:
        """Whether the prompt of `row` is longer than what the model reads."""
        prompt = self.prompts[row]
        return max((end for _, end in self.offsets[row]), default=0) < len(prompt.rstrip())

    def select(self, indices: Sequence[int]) -> "TextStates":
        """Return the rows at `indices`, in that order; a row may be taken more than once."""
        rows = torch.tensor(list(indices), dtype=torch.long)
        return TextStates(
            prompts=tuple(self.prompts[i] for i in indices),
            states=self.states[rows.to(self.states.device)],
            pooled=None if self.pooled is None else self.pooled[rows.to(self.pooled.device)],
            ids=self.ids[rows.to(self.ids.device)],
            eot=self.eot[rows.to(self.eot.device)],
            offsets=tuple(self.offsets[i] for i in indices),
        )

    def expand(self, n: int) -> "TextStates":
        """Return `n` copies of the only row.

        Raises:
            InputError: There is not exactly one row.
        """
        if len(self) != 1:
            raise InputError(f"states: expected one row to repeat, got {len(self)}. Use select.")
        return self.select([0] * n)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TextStates":
        """Return the states on `device`, those that are floating point as `dtype`; None keeps either."""
        return replace(
            self,
            states=self.states.to(device=device, dtype=dtype),
            pooled=None if self.pooled is None else self.pooled.to(device=device, dtype=dtype),
            ids=self.ids.to(device=device),
            eot=self.eot.to(device=device),
        )


_READ: ContextVar[TextStates | None] = ContextVar("being_read", default=None)


@contextmanager
def reading(states: TextStates) -> Generator[None]:
    """Let `being_read` tell, for the length of a `with`, which prompts pictures are being made of, a row a picture."""
    token = _READ.set(states)
    try:
        yield
    finally:
        _READ.reset(token)


def being_read() -> TextStates | None:
    """Return what `reading` was given: a pipeline that was handed embeddings does not know their words."""
    return _READ.get()


def concatenate(parts: Sequence[TextStates]) -> TextStates:
    """Return the rows of all parts, in order; the parts are of one model."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return TextStates(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        states=torch.cat([part.states for part in parts]),
        pooled=torch.cat(pooled) if pooled else None,
        ids=torch.cat([part.ids for part in parts]),
        eot=torch.cat([part.eot for part in parts]),
        offsets=tuple(offsets for part in parts for offsets in part.offsets),
    )


def tokenized(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, tuple[tuple[tuple[int, int], ...], ...]]:
    """Return ids and character offsets of the texts, padded and cut as diffusers' pipelines do."""
    batch = tokenizer(list(texts), max_length=tokenizer.model_max_length, return_offsets_mapping=True, **PADDED)
    offsets = tuple(tuple((start, end) for start, end in row) for row in batch["offset_mapping"].tolist())
    return batch["input_ids"], offsets


def first_end_of_text(ids: Int[Tensor, "n tokens"], tokenizer: Any) -> Int[Tensor, " n"]:
    """Return the position of each row's first end-of-text token, found by its id.

    The largest id will not do: tokens that were added after training have larger ones.
    """
    return (ids == tokenizer.eos_token_id).int().argmax(dim=1)


def spans_in(prompt: str, offsets: Offsets, phrase: str) -> list[list[int]]:
    """Return the token positions of each occurrence of a phrase in a prompt; see `TextStates.spans`."""
    words = words_of(phrase)
    if not words:
        raise InputError(f"phrase: expected words, got {phrase!r}. Name what to look for in the prompt.")
    occurrences = re.finditer(rf"(?<!\w){words}(?!\w)", prompt, flags=re.IGNORECASE)
    covered = max((end for _, end in offsets), default=0)
    return [tokens_at(offsets, at.start(), at.end()) for at in occurrences if at.end() <= covered]


def words_of(phrase: str) -> str:
    """Return a pattern for a phrase in which runs of spaces do not count; empty for no words."""
    return r"\s+".join(re.escape(word) for word in phrase.split())


def tokens_at(offsets: Offsets, start: int, end: int) -> list[int]:
    """Return the positions of the tokens that hold any of a prompt's characters [start, end)."""
    return [at for at, (first, last) in enumerate(offsets) if first < end and last > start]


_ARTICLE = r"(?:(?:a|an|the)\s+)?"
_JOINING = rf"(?:(?:and|with|of|by)\s+)?{_ARTICLE}"
_HANGING_AT_START = r"(?:and|with|of|by)"  # a prompt may well begin with an article
_HANGING_AT_END = r"(?:and|with|of|by|a|an|the)"


def without_phrases(prompt: str, phrases: Sequence[str]) -> str:
    """Return a prompt with every occurrence of some phrases taken out, whole words only, in any case.

    The article and the joining word before a phrase go with it, and so does what would be left hanging at either end:
    "a photo of a cat on a sofa" without "cat" is "a photo on a sofa", and "of a cat and a dog" is "of a dog". A plural
    is another word; name it if it must go.

    Args:
        prompt: Any text.
        phrases: What goes, the longest first.

    Raises:
        InputError: A phrase is empty.
    """
    text = prompt
    for phrase in sorted(phrases, key=len, reverse=True):
        if not phrase.strip():
            raise InputError(f"without_phrases: expected words, got {phrase!r}. Name what is to be taken out.")
        words = words_of(phrase)
        # The first of a list goes with the "and" after it: what stands before it belongs to the second as well.
        text = re.sub(rf"(?<!\w){_ARTICLE}{words}\s+and\s+", "", text, flags=re.IGNORECASE)
        text = re.sub(rf"(?<!\w){_JOINING}{words}(?!\w)(?:'s)?", " ", text, flags=re.IGNORECASE)
    return text if text == prompt else _tidied(text)


def _tidied(text: str) -> str:
    text = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))
    text = re.sub(r"(?:,\s*){2,}", ", ", text)
    while (shorter := _trimmed(text)) != text:
        text = shorter
    return text


def _trimmed(text: str) -> str:
    text = text.strip(" ,;:")
    return re.sub(rf"^{_HANGING_AT_START}\s+|\s+{_HANGING_AT_END}$|^{_HANGING_AT_END}$", "", text, flags=re.IGNORECASE)
