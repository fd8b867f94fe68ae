"""SAFREE: the prompt's states without the concepts' subspace (Yoon et al., ICLR 2025, arXiv:2410.12761)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Ability
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.safree import SAFREEGuidance
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, all_names, guided_edit


@dataclass(frozen=True, kw_only=True)
class SAFREE(Eraser):
    """Projection of the prompt's words that carry a concept, for as many steps as the prompt deserves.

    Attributes:
        alpha: Excess of a token's distance over the mean of the others' from which on it carries a concept, >= 0.
        steps: Rule for the number of steps: "released" code, "paper", or "all".
        trailing: Whether the states from the end of text on are projected too where a token carries a concept.
        as_negative: Whether the names are the negative prompt as well, as in the released generator.
        only_named: Whether prompts that name none of the concepts are left alone; the source acts on every prompt.
    """

    name: ClassVar[str] = "safree"
    source: ClassVar[str] = "arXiv:2410.12761, code b8b2c3f"
    exactness: ClassVar[Exactness] = "reconstructed"
    licence: ClassVar[str] = "none"
    stage: ClassVar[Stage] = "sampling"
    clashes: ClassVar[Mapping[str, str]] = {"semantic-surgery": "both move the same states of the prompt"}
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("unet guidance", "clip"))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    main: ClassVar[tuple[str, ...]] = ("alpha", "steps", "trailing")

    alpha: Annotated[float, Field(ge=0)] = 0.01
    steps: Literal["released", "paper", "all"] = "released"
    trailing: bool = False
    as_negative: bool = False
    only_named: bool = False

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        guidance = SAFREEGuidance(concepts=all_names(concepts), **self.as_settings())
        return guided_edit(self, (guidance,), concepts, context)
