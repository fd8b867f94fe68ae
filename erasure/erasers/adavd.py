"""AdaVD: the concept's direction off each token's value (Wang et al., CVPR 2025, arXiv:2412.06143)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Ability
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.adavd import AdaVDGuidance
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, all_names, guided_edit


@dataclass(frozen=True, kw_only=True)
class AdaVD(Eraser):
    """Removal of the concepts from the values of those tokens of a prompt that point at them.

    Attributes:
        strength: Largest shift (s), >= 0: 1 projects a concept out, 2 mirrors it.
        slope: Steepness of the shift in the cosine (p), >= 0.
        threshold: Cosine of a token's value with the concept's at which the shift is half its largest (epsilon).
        shifted: Whether tokens are told apart by their cosine; else every token is shifted by 1.
        branches: Values that are compared and changed: those of the prompt ("conditional"), as in the paper, or those
            of the unconditional text beside them ("joint"), as in the code.
        only_named: Whether prompts that name none of the concepts are left alone; the source looks at every prompt.
    """

    name: ClassVar[str] = "adavd"
    source: ClassVar[str] = "arXiv:2412.06143, code c2d2962"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "Apache-2.0"
    stage: ClassVar[Stage] = "sampling"
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("layer guidance",))
    main: ClassVar[tuple[str, ...]] = ("strength", "threshold", "branches")
    quick: ClassVar[Mapping[str, Any]] = {"threshold": -1.0}

    strength: Annotated[float, Field(ge=0)] = 2.0
    slope: Annotated[float, Field(ge=0)] = 100.0
    threshold: float = 0.93
    shifted: bool = True
    branches: Literal["conditional", "joint"] = "conditional"
    only_named: bool = False

    @property
    def reflects(self) -> bool:
        return self.strength > 1

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        guidance = AdaVDGuidance(concepts=all_names(concepts), **self.as_settings())
        return guided_edit(self, (guidance,), concepts, context)
