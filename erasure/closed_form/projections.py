"""Layers of a denoiser that read the states of tokens."""

from collections.abc import Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.conditioning import TEXT
from ..backbones.sites import has_role

Projections = Literal["all", "values", "keys"]
"""All layers that read the states of tokens, or those of the values or of the keys.

A layer that reads them for both, as in transformers with joint attention, counts as either.
"""

_OTHERS = {"all": (), "values": ("cross.k",), "keys": ("cross.v",)}  # roles that are left out


def projections(backbone: Backbone, which: Projections, space: str = TEXT) -> list[str]:
    """Return the full names of the layers that read a text stream, in the order of the model.

    The stream of sentence vectors has layers of one kind, which are returned for any.
    """
    sites = backbone.sites(reads=space)
    return [name for name, site in sites.items() if not has_role(site, _OTHERS[which])]


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
