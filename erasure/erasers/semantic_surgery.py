"""Semantic Surgery: the concepts' direction off the prompt's states (Xiong et al., NeurIPS 2025, arXiv:2510.22851)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from ..backbones.base import Ability
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.semantic_surgery import SemanticSurgeryGuidance
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, all_names, guided_edit


@dataclass(frozen=True, kw_only=True)
class SemanticSurgery(Eraser):
    """Subtraction of the joint direction of the concepts that a prompt's states hold.

    Attributes:
        beta: Presence at which a concept counts as half there: .12 for objects, .28 for people, .30 for artists, .06
            for nudity.
        gamma: Width of the gate, > 0.
        threshold: Value of the gate from which on a concept is active, in (0, 1).
        only_named: Whether prompts that name none of the concepts are left alone; the source looks at every prompt.
    """

    name: ClassVar[str] = "semantic-surgery"
    source: ClassVar[str] = "arXiv:2510.22851, code 009dbf6"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "MIT"
    stage: ClassVar[Stage] = "sampling"
    clashes: ClassVar[Mapping[str, str]] = {"safree": "both move the same states of the prompt"}
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("unet guidance", "clip"))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    main: ClassVar[tuple[str, ...]] = ("beta", "gamma")
    quick: ClassVar[Mapping[str, Any]] = {"beta": -1.0}

    beta: float = 0.12
    gamma: Annotated[float, Field(gt=0)] = 0.02
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    only_named: bool = False

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        guidance = SemanticSurgeryGuidance(concepts=all_names(concepts), **self.as_settings())
        return guided_edit(self, (guidance,), concepts, context)
