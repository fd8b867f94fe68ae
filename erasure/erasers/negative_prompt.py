"""Negative prompt: the concepts' names where the denoiser reads the empty prompt (arXiv:2207.12598)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..backbones.base import Ability
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.negative_prompt import NegativePromptGuidance
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, all_names, guided_edit


@dataclass(frozen=True, kw_only=True)
class NegativePrompt(Eraser):
    """The names as negative prompt: the reference that costs nothing, no fit and no further prediction.

    Attributes:
        only_named: Whether prompts that name none of the concepts are left alone; the source acts on every prompt.
    """

    name: ClassVar[str] = "negative-prompt"
    source: ClassVar[str] = "arXiv:2207.12598"
    exactness: ClassVar[Exactness] = "published"
    stage: ClassVar[Stage] = "sampling"
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("guidance",))
    main: ClassVar[tuple[str, ...]] = ("only_named",)

    only_named: bool = False

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        guidance = NegativePromptGuidance(concepts=all_names(concepts), **self.as_settings())
        return guided_edit(self, (guidance,), concepts, context)
