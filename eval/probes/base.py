"""Interface of a probe: an access level, a dose, and the change of the model or of its sampling at that dose."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from diffusers import DiffusionPipeline
from jaxtyping import Int
from torch import Tensor

from erasure.backbones import Backbone
from erasure.registry import Plugin

from ..attacks.base import Access, Goal

AnyProbe = TypeVar("AnyProbe", bound="Probe")


@dataclass(frozen=True, kw_only=True)
class Probe(Plugin):
    """Dose-response experiment on a model: can a removed concept be brought back, or is it still inside?

    Attributes:
        name: Name on the command line.
        access: Access to the model that the probe needs.
        dose: Name of the setting that is the dose.
        dose_unit: Unit of the dose.
    """

    access: ClassVar[Access]
    dose: ClassVar[str]
    dose_unit: ClassVar[str]

    def with_dose(self: AnyProbe, dose: float | int) -> AnyProbe:
        """Return the same probe at another dose.

        Raises:
            InputError: The dose is out of range.
        """
        return replace(self, **{type(self).dose: dose})

    @abstractmethod
    def prompt_ids(self, backbone: Backbone, goal: Goal) -> Int[Tensor, "m tokens"]:
        """Return the token ids of the prompts to sample, at least one row.

        Args:
            backbone: Model.
            goal: Concept to bring back, and its prompt.
        """

    @abstractmethod
    def applied_to(self, pipe: DiffusionPipeline, goal: Goal) -> AbstractContextManager[None]:
        """Return the context in which the images of those prompts are sampled; the pipeline is restored on exit.

        Args:
            pipe: Pipeline with the edit applied.
            goal: Concept to bring back, and its prompt.
        """
