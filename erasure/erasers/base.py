"""What every eraser is: settings, and one method that turns concepts into an edit."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from ..backbones.base import Backbone
from ..concept import Concept
from ..edit import Edit
from ..plugins import Plugin


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a fit that takes many.

    Attributes:
        step: How many are done, from 1.
        total: How many there will be.
        loss: The step's loss, where there is one.
        note: What the step did, where that differs from step to step.
    """

    step: int
    total: int
    loss: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    """What a continual eraser may know of what came before.

    Attributes:
        targets: The concepts removed so far, in order.
        originals: Weights of the model before the first removal, by full parameter name; those that differ now.
    """

    targets: tuple[Concept, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Eraser(Plugin):
    """A method with its settings: its fields are the keys of a config, its defaults the values of its paper.

    Attributes:
        name: What it is called in a config and on the command line; the file's name.
        reads_weights: Whether the edit depends on the weights that it is fitted on. One that only reads text states
            is the same whatever was removed before, so a ledger need not put that together first.
    """

    reads_weights: ClassVar[bool] = True
    # Settings with which a fit is a moment's work on a tiny model, for tests and trials; never for results.
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @abstractmethod
    def fit(
        self,
        backbone: Backbone,
        concepts: Sequence[Concept],
        *,
        history: History | None = None,
        on_step: Callable[[Step], None] | None = None,
        seed: int = 0,
    ) -> Edit:
        """Return the edit that removes the concepts; the model is left as it was, bit for bit.

        Raises:
            InputError: There are no concepts.
        """
