"""Base class of the erasers: settings, and one method that turns concepts into an edit."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..backbones.base import Backbone
from ..backbones.schedule import Discrete, Flow, NoiseSchedule
from ..concept import Concept
from ..edits import Edit
from ..errors import InputError
from ..registry import Plugin
from ..training.context import FitContext


@dataclass(frozen=True, kw_only=True)
class Eraser(Plugin):
    """A method with its settings: its fields are the keys of a config, its defaults the values of its paper.

    Attributes:
        name: Name in a config and on the command line, equal to the name of the file.
        depends_on: Inputs of the edit: "weights", the weights that it is fitted on, or "text", text states alone. An
            edit of text states does not depend on earlier removals, so a ledger need not apply them first, and it can
            be fitted on a model whose weights stay on the disk.
        together: Whether several concepts of one request are removed at once, as one entry of a ledger (the members of
            a family); else one after another.
    """

    depends_on: ClassVar[Literal["text", "weights"]] = "weights"
    together: ClassVar[bool] = False
    # Noise schedules of the models that the method covers.
    schedules: ClassVar[tuple[type[NoiseSchedule], ...]] = (Discrete, Flow)
    # The settings that a person turns first.
    main: ClassVar[tuple[str, ...]] = ()

    def require(self, concepts: Sequence[Concept]) -> None:
        """Raise InputError if there is nothing to remove."""
        if not concepts:
            raise InputError(f"{self.name}: expected at least one concept, got none. Name what is to be erased.")

    def require_schedule(self, backbone: Backbone) -> None:
        """Raise InputError if the method does not cover models with the backbone's noise schedule."""
        if not isinstance(backbone.schedule, self.schedules):
            covered = " or ".join(schedule.words for schedule in self.schedules)
            raise InputError(
                f"{self.name}: expected a model with {covered}, got {backbone.family} with"
                f" {backbone.schedule.words}. Use another eraser."
            )

    @abstractmethod
    def fit(self, concepts: Sequence[Concept], context: FitContext) -> Edit:
        """Return the edit that removes the concepts; the model is left as it was, bit for bit.

        Args:
            concepts: Concepts to remove, together.
            context: Model, earlier removals, judge, seed and progress.

        Raises:
            InputError: There are no concepts.
        """
