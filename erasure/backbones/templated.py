"""Tokens of prompts that stand in a template, as encoders of language models read them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from .conditioning import EncodedTokens

_NO_LIMIT = 1_000_000  # tokens; a length that is never reached
_MARK = "\u00a7"  # stands for the prompt where a template is measured; in none of them

_Item = TypeVar("_Item")

Template = Callable[[str], str]
"""The text that the encoder reads, from a prompt."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Place of the tokens of a text in the states that the denoiser reads.

    Attributes:
        longest: Largest number of tokens of the text that is encoded, special ones included.
        dropped: Number of the first tokens whose states are left out.
        width: Number of states of each row; None is that of the longest row.
        left: Whether padding comes first.
        multiple: Number that the length of a row is padded to a multiple of, where there is no `width`.
        reads_padding: Whether the denoiser reads the states of padding.
        causal: Whether a state depends on no later token.
        special: Whether the tokenizer adds its special tokens; a chat template may hold them already.
    """

    longest: int
    dropped: int = 0
    width: int | None = None
    left: bool = False
    multiple: int = 1
    reads_padding: bool = False
    causal: bool = True
    special: bool = True


def templated_tokens(
    tokenizer: PreTrainedTokenizerBase, encoder: str, prompts: Sequence[str], template: Template, layout: Layout
) -> EncodedTokens:
    """Return the tokens of prompts in a template, their offsets counted in the prompt.

    `ends` is the position of the first token after the prompt: the template's, or that of the end of text; without
    either it is the position after the last.
    """
    marked = template(_MARK)
    lead, trail = marked.index(_MARK), _behind(tokenizer, marked, layout)
    rows = [_row(tokenizer, template(prompt), prompt, lead, trail, layout) for prompt in prompts]
    lengths = [layout.width or -(-len(row.ids) // layout.multiple) * layout.multiple for row in rows]
    width = max(lengths)
    shifts = [length - len(row.ids) if layout.left else 0 for row, length in zip(rows, lengths, strict=True)]
    padding = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    return EncodedTokens(
        encoder=encoder,
        ids=torch.tensor([_padded(row.ids, width, shift, padding) for row, shift in zip(rows, shifts, strict=True)]),
        ends=torch.tensor([row.end + shift for row, shift in zip(rows, shifts, strict=True)]),
        offsets=tuple(
            tuple(_padded(row.offsets, width, shift, (0, 0))) for row, shift in zip(rows, shifts, strict=True)
        ),
        causal=layout.causal,
        read=tuple(
            (row.start + shift, width if layout.reads_padding else len(row.ids) + shift)
            for row, shift in zip(rows, shifts, strict=True)
        ),
    )


def chat_text(tokenizer: PreTrainedTokenizerBase, prompt: str, *, thinks: bool) -> str:
    """Return the prompt as a person's message in a language model's chat, up to where its answer begins.

    Args:
        tokenizer: The language model's tokenizer.
        prompt: The prompt.
        thinks: Whether the template leaves the model's thoughts open.
    """
    chat = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=thinks))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """The tokens of one text: those of the prompt are from `start` to before `end`."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    start: int
    end: int


def _row(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str, lead: int, trail: int, layout: Layout) -> _Row:
    ids, offsets = _tokenized(tokenizer, text, layout)
    last = lead + len(prompt)
    inside = [i for i, (begin, end) in enumerate(offsets) if begin < last and end > lead]
    cut = [(max(b - lead, 0), min(e, last) - lead) if i in inside else (0, 0) for i, (b, e) in enumerate(offsets)]
    whole = len(ids) < layout.longest or (inside and offsets[inside[-1]][1] >= last)
    end = len(ids) - trail if whole else (inside[-1] + 1 if inside else len(ids))
    # A prompt without tokens of its own is read at the token after it, or at the last of all.
    start = inside[0] if inside else min(end, len(ids) - 1)
    dropped = layout.dropped
    return _Row(ids=ids[dropped:], offsets=cut[dropped:], start=max(start - dropped, 0), end=max(end - dropped, 0))


def _behind(tokenizer: PreTrainedTokenizerBase, marked: str, layout: Layout) -> int:
    """Return the number of tokens behind the prompt, those of the template and special ones."""
    _, offsets = _tokenized(tokenizer, marked, replace(layout, longest=_NO_LIMIT))
    place = marked.index(_MARK)
    return len(offsets) - 1 - max(i for i, (begin, end) in enumerate(offsets) if begin <= place < end)


def _tokenized(
    tokenizer: PreTrainedTokenizerBase, text: str, layout: Layout
) -> tuple[list[int], list[tuple[int, int]]]:
    batch = tokenizer(
        text,
        truncation=True,
        max_length=layout.longest,
        add_special_tokens=layout.special,
        return_offsets_mapping=True,
    )
    return list(batch["input_ids"]), [(int(begin), int(end)) for begin, end in batch["offset_mapping"]]


def _padded(row: list[_Item], width: int, shift: int, filling: _Item) -> list[_Item]:
    return [*[filling] * shift, *row, *[filling] * (width - shift - len(row))]
