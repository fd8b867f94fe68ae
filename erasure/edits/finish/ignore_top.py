"""An edit without its largest entries: Outlandish, ignore-k (arXiv:2504.09522)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ...backbones.base import Backbone
from ...registry import Exactness
from ..weight_edit import WeightEdit
from .base import Finish, with_deltas
from .keep_top import top_entries


@dataclass(frozen=True, kw_only=True)
class IgnoreTop(Finish):
    """The entries of each weight that change most are as before the edit; the others keep their change.

    The opposite of `keep-top`. In the paper it takes away what a new text primes elsewhere, and not the text.

    Differs from the paper: of the whole edit; theirs thins out each update.

    Attributes:
        share: Share of the entries of each weight that lose their change, in [0, 1); 0 leaves the edit as it is.
    """

    name: ClassVar[str] = "ignore-top"
    source: ClassVar[str] = "arXiv:2504.09522"
    exactness: ClassVar[Exactness] = "reconstructed"

    share: Annotated[float, Field(ge=0, lt=1)] = 0.08

    def applied(self, edit: WeightEdit, backbone: Backbone) -> WeightEdit:
        if self.share == 0:
            return edit
        return with_deltas(edit, backbone, lambda _, delta: delta * (1 - top_entries(delta, self.share)))
