"""Selection by the role of a weight in the denoiser."""

from dataclasses import dataclass
from typing import ClassVar

from ...errors import InputError
from ...registry import Exactness
from ..context import TrainingTask
from .base import Selection, Selector

TEXT_ATTENTION = ("cross", "joint", "shared")
"""Roles of the attention that reads text."""
ATTENTION = ("cross", "self", "joint", "shared", "refiner")
"""Roles of all attention."""
TEXT_KEYS_AND_VALUES = ("cross.k", "cross.v", "joint.text.k", "joint.text.v", "shared.k", "shared.v")
"""Roles of the keys and values of that attention."""


@dataclass(frozen=True, kw_only=True)
class Roles(Selector):
    """The weights of some roles, such as the keys and values of cross-attention.

    Attributes:
        roles: Roles of `erasure.backbones.sites`; "cross" includes "cross.k".
    """

    name: ClassVar[str] = "roles"
    source: ClassVar[str] = "ours"
    exactness: ClassVar[Exactness] = "ours"

    roles: tuple[str, ...] = TEXT_ATTENTION

    def selected(self, task: TrainingTask) -> Selection:
        sites = task.backbone.sites(self.roles)
        names = frozenset(task.backbone.parameters(lambda name: task.trained(name) and name in sites))
        if not names:
            trained = {task.backbone.sites()[name].role for name in task.backbone.sites() if task.trained(name)}
            raise InputError(
                f"roles.roles: expected roles of weights that are trained, got {self.roles!r}."
                f" Use {', '.join(sorted(trained)) or 'another eraser'}."
            )
        return Selection(names=names)
