"""Layers of a denoiser that read the states of tokens."""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT

Projections = Literal["all", "values", "keys"]
"""All layers that read the states of tokens, or those of the values or of the keys.

A layer that reads them for both, as in transformers with joint attention, counts as either.
"""

_ROLES = {"all": None, "values": ("cross.v", "text.in"), "keys": ("cross.k", "text.in")}


def projections(backbone: Backbone, which: Projections, space: str = TEXT) -> list[str]:
    """Return the full names of the layers that read a text stream, in the order of the model.

    The stream of sentence vectors has layers of one kind, which are returned for any.
    """
    return list(backbone.sites(_ROLES[which] if space == TEXT else None, reads=space))


@torch.no_grad()
def projection_gram(backbone: Backbone, names: Collection[str]) -> Float[Tensor, "dim dim"]:
    """Return G, the sum of W^T W over layers of those full names, in float64 on the CPU.

    One pass over the weights; |W x| of a state x, summed in squares over all layers, is x^T G x.
    """
    total, columns = torch.zeros(()), {name: site.columns for name, site in backbone.sites().items()}
    for name, weight in backbone.parameters(frozenset(names).__contains__).items():
        exact = weight.detach()[:, : columns[name]].to("cpu", torch.float64)
        total = total + exact.T @ exact
    return total
