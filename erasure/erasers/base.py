"""What every eraser is: settings, and one method that turns concepts into an edit."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from PIL.Image import Image
from torch import Tensor

from ..backbones.base import Backbone
from ..concept import Concept
from ..edits import Edit
from ..edits.changes import exchanged
from ..errors import InputError
from ..progress import OnProgress
from ..registry import Plugin

Shows = Callable[[Sequence[Image], Concept], Sequence[bool]]
"""Says of each picture whether it shows a concept."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What a continual eraser may know of what came before, and of what is around it.

    Attributes:
        targets: The concepts removed so far, in order.
        originals: Weights of the model before the first removal, by full parameter name; those that differ now.
        memory: A folder for what is made once and used by every removal; None keeps nothing.
        shows: Tells which pictures show a concept; None where nothing can tell.
    """

    targets: tuple[Concept, ...] = ()
    originals: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Path | None = None
    shows: Shows | None = None

    @contextmanager
    def original(self, backbone: Backbone) -> Iterator[None]:
        """Have the model be as before the first removal for the length of a `with`."""
        with exchanged(backbone.parameters(self.originals.__contains__), self.originals):
            yield


@dataclass(frozen=True, kw_only=True)
class Eraser(Plugin):
    """A method with its settings: its fields are the keys of a config, its defaults the values of its paper.

    Attributes:
        name: What it is called in a config and on the command line; the file's name.
        reads_weights: Whether the edit depends on the weights that it is fitted on. One that only reads text states
            is the same whatever was removed before, so a ledger need not put that together first, and it can be
            fitted on a model whose weights stay on the disk.
        together: Whether several concepts that are asked for at once are removed at once, as one entry of a ledger: the
            members of a family; else one after another.
    """

    reads_weights: ClassVar[bool] = True
    together: ClassVar[bool] = False
    # The settings that a person turns first.
    main: ClassVar[tuple[str, ...]] = ()
    # Settings with which a fit is a moment's work on a tiny model, for tests and trials; never for results.
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Settings that a run on the tiny world has where it leaves them open: so small a model takes other step sizes.
    on_tinyworld: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def require(self, concepts: Sequence[Concept]) -> None:
        """Raise InputError if there is nothing to remove."""
        if not concepts:
            raise InputError(f"{self.name}: expected at least one concept, got none. Name what is to be erased.")

    @abstractmethod
    def fit(
        self,
        backbone: Backbone,
        concepts: Sequence[Concept],
        *,
        history: History | None = None,
        on_progress: OnProgress | None = None,
        seed: int = 0,
    ) -> Edit:
        """Return the edit that removes the concepts; the model is left as it was, bit for bit.

        Raises:
            InputError: There are no concepts.
        """
