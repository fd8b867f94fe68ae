"""Vectors behind the start of a prompt, in the place of words' embeddings, as AdvUnlearn has (arXiv:2405.15234)."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.text_blocks import clip_encoders


def word_rows(backbone: Backbone) -> Float[Tensor, "words dim"]:
    """Return the embedding of every word, those of several text encoders side by side."""
    return torch.cat([_table(backbone, name).weight.detach().float() for name in clip_encoders(backbone)], dim=1)


def encoded_behind(
    backbone: Backbone, ids: Int[Tensor, "n tokens"], prefix: Float[Tensor, "k dim"] | None
) -> Conditioning:
    """Return prompts with vectors between the start of text and their first token, encoded, with gradient.

    Args:
        backbone: Model whose text encoders share one vocabulary.
        ids: Token ids of the prompts; what does not fit behind the prefix is cut off.
        prefix: Embeddings, as `word_rows` has them; None, or none of them, encodes the prompts as they are.
    """
    if prefix is None or not len(prefix):
        return backbone.encode_ids(ids)
    k, length = len(prefix), ids.shape[1]
    end = cast("int", next(iter(backbone.tokenizers().values())).eos_token_id)
    # The embedding of what stands in for them is never read.
    longer = torch.cat([ids[:, :1].expand(-1, 1 + k), ids[:, 1 : length - k]], dim=1)
    longer[:, -1] = torch.where((longer == end).any(1), longer[:, -1], end)
    with _in_place_of_words(backbone, prefix):
        return backbone.encode_ids(longer)


@contextmanager
def _in_place_of_words(backbone: Backbone, prefix: Float[Tensor, "k dim"]) -> Generator[None]:
    """Put the prefix in the place of the embeddings behind the start of text, for the length of a `with`."""

    def put(vectors: Tensor, module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows = vectors.to(output).expand(len(output), -1, -1)
        return torch.cat([output[:, :1], rows, output[:, 1 + len(vectors) :]], dim=1)

    with ExitStack() as hooks:
        first = 0
        for name in clip_encoders(backbone):
            table = _table(backbone, name)
            last = first + table.embedding_dim
            hooks.callback(table.register_forward_hook(partial(put, prefix[:, first:last])).remove)
            first = last
        yield


def _table(backbone: Backbone, encoder: str) -> nn.Embedding:
    return cast("nn.Embedding", clip_encoders(backbone)[encoder].get_input_embeddings())
