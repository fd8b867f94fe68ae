"""The interface of a term: a further loss that preserves what stands beside a concept."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ...backbones.base import Backbone
from ...concept import Concept
from ...errors import InputError
from ...registry import Plugin
from ..context import TrainingTask
from ..finetune import Loss
from ..phrases import class_phrases

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Term(Plugin):
    """A further loss of a trained eraser, by name and weight: `shape: {keep: {attention: 1.0}}`.

    Attributes:
        reads: Trained weights that the term depends on: "encoder", those of a text encoder; "text", those that read
            text states directly; or "any".
        erases: Whether the term is a part of the erasure instead of preserving: maps of gradients see it with the main
            loss, and it need not be at its least at the reference.
        weight: Factor against the main loss, >= 0; at 0 the term is not computed.
    """

    reads: ClassVar[Literal["encoder", "text", "any"]] = "any"
    erases: ClassVar[bool] = False

    weight: Annotated[float, Field(ge=0)] = 1.0

    @abstractmethod
    def loss(self, task: TrainingTask) -> Loss:
        """Return the loss, which is at its least where the trained model equals the reference.

        Raises:
            InputError: No concept preserves anything.
        """

    @classmethod
    def reaches(cls, names: Iterable[str], backbone: Backbone) -> bool:
        """Return True if the term depends on one of the parameters; else its gradient would be zero.

        The feature of a text does not know the denoiser, and keys and values of a text know nothing of it but their own
        projections.
        """
        match cls.reads:
            case "encoder":
                return any(name.partition(".")[0] in backbone.tokenizers() for name in names)
            case "text":
                return not backbone.sites(reads="text").keys().isdisjoint(names)
            case _:
                return any(True for _ in names)

    def phrases(self, concepts: Sequence[Concept]) -> list[str]:
        """Return the class phrases of the concepts.

        Raises:
            InputError: No concept preserves anything.
        """
        phrases = class_phrases(concepts)
        if not phrases:
            raise self.nothing_to_preserve()
        logger.info("keep.%s: %d phrases: %s", self.name, len(phrases), "; ".join(phrases))
        return phrases

    def nothing_to_preserve(self) -> InputError:
        """Return the error about concepts that preserve nothing."""
        return InputError(
            f"shape.keep.{self.name}: expected concepts that preserve something, got none. Name it in preserve."
        )
