"""Many prompts read by a causal text encoder at once, each beginning that some of them share only once.

A state of a causal encoder depends on its token and those before it alone, so prompts are branches of a tree of tokens.
Linear layers, nearly all of the work, read each node of the tree once; attention reads the branches. The encoder's
modules compute all of it, with an implementation of attention that they look up by name.

A branch is padded to a multiple of 16 tokens for attention, whose kernel computes in vectors of that size: on the CPUs
that this was tried on, a state is then the same to the last bit as that of a prompt padded to the encoder's length,
whatever is read beside it.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .picked import Place

_VECTOR = 16  # floats of AVX-512; a multiple of those of other CPUs
_ATTENTION = "erasure_token_tree"
_AT_ONCE = 4096  # tokens before shared beginnings are taken together: 60 MB in the widest layer of SD's encoder


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTree:
    """Prompts as branches of a tree of tokens.

    Attributes:
        tokens: Token of each node.
        positions: Position of each node in its prompts.
        branches: For each prompt its nodes.
        longest: Number of tokens that the encoder reads at most.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    longest: int

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], longest: int) -> "TokenTree":
        """Return the tree of rows of token ids."""
        nodes: dict[tuple[int, int], int] = {}
        positions: list[int] = []
        branches: list[tuple[int, ...]] = []
        for row in rows:
            node, branch = -1, []
            for position, token in enumerate(row):
                node = nodes.setdefault((node, token), len(nodes))
                if node == len(positions):
                    positions.append(position)
                branch.append(node)
            branches.append(tuple(branch))
        return cls(
            tokens=tuple(token for _, token in nodes),
            positions=tuple(positions),
            branches=tuple(branches),
            longest=longest,
        )

    def grid(self, values: Sequence[int]) -> Int[Tensor, "rows longest"]:
        """Return a value of each node in rows as long as the encoder allows; the rest of the last one is 0."""
        rows = -(-len(values) // self.longest)
        return torch.tensor([*values, *[0] * (rows * self.longest - len(values))]).reshape(rows, self.longest)

    @cached_property
    def lots(self) -> tuple[tuple[Int[Tensor, "n length"], Bool[Tensor, "n length"]], ...]:
        """Nodes of branches of one padded length, and those of them that no branch before has."""
        seen = 0
        by_length: dict[int, list[tuple[list[int], list[bool]]]] = {}
        for branch in self.branches:
            if branch[-1] < seen:
                continue
            length = min(-(-len(branch) // _VECTOR) * _VECTOR, self.longest)
            padding = length - len(branch)
            new = [node >= seen for node in branch]
            by_length.setdefault(length, []).append(([*branch, *[branch[-1]] * padding], [*new, *[False] * padding]))
            seen = branch[-1] + 1
        return tuple(
            (torch.tensor([nodes for nodes, _ in lot]), torch.tensor([new for _, new in lot]))
            for lot in by_length.values()
        )


Read = Callable[[PreTrainedModel, TokenTree], tuple[Tensor, Tensor]]
"""Function of an encoder and a tree to the states of its nodes in rows of a grid: those that are read, and the last."""


def read_places(
    encoder: PreTrainedModel, rows: Sequence[Sequence[int]], places: Sequence[Place], read: Read
) -> tuple[Float[Tensor, "k dim"], Float[Tensor, "n last"]]:
    """Return the states at some places of prompts, and the last state of each prompt at the place that is pooled.

    Args:
        encoder: Causal encoder of CLIP's classes.
        rows: Token ids of each prompt, as far as they are read: at least to the first end of text.
        places: Row and position of each state.
        read: Way that a tree is read.
    """
    positions: dict[int, list[tuple[int, int]]] = {}
    for number, (row, position) in enumerate(places):
        positions.setdefault(row, []).append((number, position))
    states, last = {}, {}
    for lot in _lots(rows):
        tree = TokenTree.of([rows[row] for row in lot], encoder.config.max_position_embeddings)
        all_states, all_last = (grid.flatten(0, 1) for grid in read(encoder, tree))
        for row, branch in zip(lot, tree.branches, strict=True):
            states |= {number: all_states[branch[position]].clone() for number, position in positions.get(row, ())}
            last[row] = all_last[branch[_pooled_place(encoder, rows[row])]].clone()
    return torch.stack([states[i] for i in range(len(places))]), torch.stack([last[i] for i in range(len(rows))])


def _pooled_place(encoder: PreTrainedModel, row: Sequence[int]) -> int:
    """Return the position that CLIP's classes pool; old configurations, whose end of text is 2, mean the largest id."""
    end = encoder.config.eos_token_id
    if end == 2:
        return row.index(max(row))
    return row.index(end) if end in row else 0


def _lots(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the numbers of rows that are read at once: those with the same beginnings together."""
    lot: list[int] = []
    tokens = 0
    for row in sorted(range(len(rows)), key=lambda number: tuple(rows[number])):
        if lot and tokens + len(rows[row]) > _AT_ONCE:
            yield lot
            lot, tokens = [], 0
        lot.append(row)
        tokens += len(rows[row])
    yield lot


_TREE: ContextVar[TokenTree | None] = ContextVar("token_tree", default=None)


def attends_by_sdpa(encoder: PreTrainedModel) -> bool:
    """Return True if an encoder's attention is the one that a tree is read with."""
    return {config._attn_implementation for config in _configs(encoder)} == {"sdpa"}


def read_tree(encoder: PreTrainedModel, tree: TokenTree) -> Any:
    """Return the output of a causal encoder of CLIP's classes; its states are those of the nodes, in rows of a grid.

    What it pools is not to be used.
    """
    with _attention_along(encoder, tree):
        return encoder(tree.grid(tree.tokens), position_ids=tree.grid(tree.positions), return_dict=True)


@contextmanager
def _attention_along(encoder: PreTrainedModel, tree: TokenTree) -> Generator[None]:
    AttentionInterface.register(_ATTENTION, _attended)
    configs = _configs(encoder)
    token = _TREE.set(tree)
    try:
        for config in configs:
            config._attn_implementation = _ATTENTION
        yield
    finally:
        for config in configs:
            config._attn_implementation = "sdpa"
        _TREE.reset(token)


def _configs(encoder: PreTrainedModel) -> list[Any]:
    """Return the configurations that an encoder's modules look up their attention in."""
    configs = (module.config for module in encoder.modules() if hasattr(module, "config"))
    return list({id(config): config for config in configs}.values())


def _attended(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads length dim"],
    key: Float[Tensor, "rows heads length dim"],
    value: Float[Tensor, "rows heads length dim"],
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows length heads dim"], None]:
    """Return the result of causal attention along the branches of the tree that is being read."""
    tree = _TREE.get()
    if tree is None:  # another thread's pass of the same encoder
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    flat = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    attended = torch.zeros_like(flat[0])
    for nodes, new in tree.lots:
        queries, keys, values = (states[nodes].transpose(1, 2) for states in flat)
        states, _ = sdpa_attention_forward(module, queries, keys, values, None, **kwargs)
        attended[nodes[new]] = states[new]
    return attended.unflatten(0, (len(query), tree.longest)), None
