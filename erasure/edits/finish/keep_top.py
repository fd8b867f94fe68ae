"""The largest entries of an edit alone: multi-step sparse updates against fabricated facts (arXiv:2410.21750)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ...backbones.base import Backbone
from ...registry import Exactness
from ..weight_edit import WeightEdit
from .base import Finish, with_deltas


@dataclass(frozen=True, kw_only=True)
class KeepTop(Finish):
    """The share of the entries that change most, in each weight; the others are as before the edit.

    Differs from the paper: once, at the end; theirs thins out the update several times during the training. Which
    entries it keeps is not in its abstract.

    Attributes:
        share: Share of the entries of each weight that keep their change, in (0, 1]; 1 leaves the edit as it is.
    """

    name: ClassVar[str] = "keep-top"
    source: ClassVar[str] = "arXiv:2410.21750"
    exactness: ClassVar[Exactness] = "reconstructed"

    share: Annotated[float, Field(gt=0, le=1)] = 0.05

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        if self.share == 1:
            return edit
        return with_deltas(edit, backbone, lambda _, delta: delta * top_entries(delta, self.share))


def top_entries(delta: Float[Tensor, "..."], share: float) -> Float[Tensor, "..."]:
    """Return 1 at the largest entries in size, so many that they are a share of all, and 0 elsewhere.

    Ties are decided by the order of the entries.
    """
    flat = delta.abs().flatten()
    mask = torch.zeros_like(flat)
    mask[flat.argsort(descending=True, stable=True)[: round(share * len(flat))]] = 1.0
    return mask.view_as(delta)
