"""Semantic preservation: a class keeps its meaning while an instance of it is learned or removed.

ClassDiffusion (Huang et al., ICLR 2025, arXiv:2405.17532) ties the text feature of an instance's phrase to that of its
class, L_sp = 1 - cos(f(p_inst), f(p_cls)). As a term of erasers (reconstructed) the same distance is taken between a
phrase and itself before the change, in a space that the trained weights reach: of the text, of the keys and values, or
of the predicted noise.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Space = Literal["text", "kv", "noise"]
Pooling = Literal["eos", "official_argmax", "published"]


def cosine_preservation(
    features: Float[Tensor, "n dim"],
    reference: Float[Tensor, "n dim"],
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean of 1 - cos(f, f_0) over phrases, in [0, 2]; the reference gets no gradient.

    Computed in float32 or better: near a cosine of 1 the gradient is tiny.

    Args:
        features: f, one row a phrase.
        reference: f_0, in the same order.
        weights: Weights of the phrases, >= 0, not all 0; None weighs them alike.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    apart = 1 - F.cosine_similarity(features.to(dtype), reference.detach().to(dtype), dim=-1)
    return apart.mean() if weights is None else (weights.to(apart) * apart).sum() / weights.to(apart).sum()


def norm_preservation(features: Float[Tensor, "n dim"], reference: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Return the mean of (|f| / |f_0| - 1)^2, which a cosine does not see; the reference gets no gradient."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    lengths = reference.detach().to(dtype).norm(dim=-1).clamp(min=torch.finfo(dtype).tiny)
    return (features.to(dtype).norm(dim=-1) / lengths - 1).square().mean()


def pooled_position(ids: Int[Tensor, "n tokens"], eos_token_id: int, pooling: Pooling = "eos") -> Int[Tensor, " n"]:
    """Return the position at which a phrase's feature is read.

    "eos" is the first end of text, as in the paper. "official_argmax" and "published" are that of the published code:
    the largest id, which is that of an added token where there is one. A feature read there has not seen the words
    after it.
    """
    return ids.argmax(dim=-1) if pooling != "eos" else (ids == eos_token_id).int().argmax(dim=-1)


def kv_preservation(
    states: Float[Tensor, "n dim"], weights: Mapping[str, Tensor], originals: Mapping[str, Tensor]
) -> Float[Tensor, ""]:
    """Return the mean change of the keys and values of text states over layers: 1 - cos plus (norm ratio - 1)^2.

    Args:
        states: States of the phrases' words and ends, as the layers read them.
        weights: The projections W by name, each (out, dim), with gradient.
        originals: W_0 by the same names.
    """
    terms = []
    for name, original in originals.items():
        now, before = states @ weights[name].to(states).T, states @ original.to(states).T
        terms.append(cosine_preservation(now, before) + norm_preservation(now, before))
    return torch.stack(terms).mean()
