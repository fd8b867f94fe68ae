"""Localised removal during sampling: the weights stay as they are, and each image is changed only where the concept is.

Built on the maps of A-STAR (arXiv:2306.14544) and the safety term of SLD (arXiv:2211.05105); the combination is this
project's own, see `erasure.guidance.localised`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Ability
from ..backbones.schedule import Discrete, Flow
from ..concept import Concept
from ..edits import SamplingEdit
from ..errors import InputError
from ..guidance.localised import LocalisedRemoval
from ..losses.attention import Rule
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, guided_edit

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Localised(Eraser):
    """Removal during sampling, in the region of the concept's attention.

    Prompts that name neither a target nor an alias are sampled as by the original model, bit for bit. The pipeline
    samples every other image twice, so it takes twice the time.

    Attributes:
        scale: Strength of the force away from the target's name, >= 0.
        outside: Whether the rest of the image is held at the "original" or left "free", which takes less time.
        region: Rule that makes regions of attention maps.
        region_threshold: Threshold of the rule "half", in (0, 1].
        grow: Pixels of the maps by which a target's region is grown, >= 0.
        steps_range: Part of the schedule in which it acts, two shares from 0 to 1.
        leak_alpha: Step size of the update that pushes a target out of the regions of preserved concepts, >= 0.
    """

    name: ClassVar[str] = "localised"
    source: ClassVar[str] = "ours, built on arXiv:2306.14544 and arXiv:2211.05105"
    exactness: ClassVar[Exactness] = "ours"
    stage: ClassVar[Stage] = "sampling"
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("unet guidance",))
    schedules: ClassVar[tuple[type[Discrete | Flow], ...]] = (Discrete,)
    main: ClassVar[tuple[str, ...]] = ("scale", "region_threshold", "grow")

    scale: Annotated[float, Field(ge=0)] = 0.0
    outside: Literal["original", "free"] = "original"
    region: Rule = "half"
    region_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    grow: Annotated[int, Field(ge=0)] = 1
    steps_range: tuple[Share, Share] = (0.0, 1.0)
    leak_alpha: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        start, end = self.steps_range
        if start > end:
            got = f"got {self.steps_range!r}. Write (0, 1) for all steps."
            raise InputError(f"localised.steps_range: expected two shares in order, {got}")

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        removals = [
            LocalisedRemoval(
                concepts=concept.names,
                anchor=concept.anchor,
                preserve=concept.preserve,
                **self.as_settings(),
            )
            for concept in concepts
        ]
        return guided_edit(self, LocalisedRemoval.merged(removals), concepts, context)
