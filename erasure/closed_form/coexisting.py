"""Rows of the words around a name: of a prompt with it, and of the same prompt with its anchor, token by token."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT, EncodedTokens
from .problem import Row
from .readers import PromptPair


def coexisting_rows(backbone: Backbone, pairs: Sequence[PromptPair]) -> list[Row]:
    """Return the state of every token beside the name's, with that of the same token beside the anchor's.

    Tokens are the same before the first and after the last in which the two prompts differ; the first end of text and
    all that follow it are paired in order. The tokens of the name have no rows.
    """
    prompts = sorted({prompt for pair in pairs for prompt in (pair.prompt, pair.anchor_prompt)})
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    return [
        Row(
            label=pair.label,
            site=f"{pair.template}|{'' if number == 0 else f'{tokens.encoder}-'}{place}",
            state=states[row_of[pair.prompt], position].cpu().double(),
            weight=1.0,
            anchor_label=pair.anchor_label,
            anchor=states[row_of[pair.anchor_prompt], other].cpu().double(),
        )
        for number, (tokens, states) in enumerate(backbone.read(prompts).streams[TEXT].parts())
        for pair in dict.fromkeys(pairs)
        for place, position, other in _same_tokens(tokens, row_of[pair.prompt], row_of[pair.anchor_prompt])
    ]


def _same_tokens(tokens: EncodedTokens, row: int, other_row: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name of a place, and its positions in the prompt and in the anchor's."""
    one, other = (tokens.ids[i, : int(tokens.ends[i])].tolist() for i in (row, other_row))
    shorter = min(len(one), len(other))
    before = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    behind = next((i for i in range(shorter - before) if one[-1 - i] != other[-1 - i]), shorter - before)
    yield from ((f"before-{i}", i, i) for i in range(before))
    yield from ((f"behind-{i}", len(one) - i, len(other) - i) for i in range(behind, 0, -1))
    for i in range(min(max(tokens.span(row)) - len(one), max(tokens.span(other_row)) - len(other)) + 1):
        yield f"trailing-{i}", len(one) + i, len(other) + i


def context_gram(backbone: Backbone, prompts: Sequence[str]) -> Float[Tensor, "dim dim"]:
    """Return the sum of e e^T over every state of prompts; float64 on the CPU."""
    rows = backbone.read(sorted(set(prompts))).streams[TEXT].read_states().to("cpu", torch.float64)
    return rows.T @ rows
