"""SLD, Safe Latent Diffusion: guidance away from the concepts (Schramowski et al., CVPR 2023, arXiv:2211.05105)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..backbones.base import Ability
from ..concept import Concept
from ..edits import SamplingEdit
from ..guidance.sld import SafeLatentDiffusion
from ..registry import Exactness
from ..training.context import FitContext
from .base import Dependence, Eraser, Stage, all_names, guided_edit


def _published(warmup: int, scale: float, threshold: float, momentum_scale: float, momentum: float) -> dict[str, Any]:
    return {
        "warmup": warmup,
        "scale": scale,
        "threshold": threshold,
        "momentum_scale": momentum_scale,
        "momentum": momentum,
    }


@dataclass(frozen=True, kw_only=True)
class SLD(Eraser):
    """Guidance away from the prediction for the concepts' names.

    Attributes:
        strength: Published set of the values below: "weak", "medium", "strong" or "max". A value that is given wins.
        scale: Factor of the difference between the predictions for prompt and names, >= 0 (k, `guidance_scale`).
        threshold: Difference from which on an element of the latents is left alone (lambda).
        momentum_scale: Share of the momentum in the force, >= 0.
        momentum: Share of the old momentum in the new one, in [0, 1).
        warmup: Number of steps in which only the momentum is collected, >= 0.
        only_named: Whether prompts that name none of the concepts are left alone; the source acts on every prompt.
    """

    name: ClassVar[str] = "sld"
    source: ClassVar[str] = "arXiv:2211.05105, code a42923c"
    exactness: ClassVar[Exactness] = "published"
    licence: ClassVar[str] = "MIT"
    stage: ClassVar[Stage] = "sampling"
    depends_on: ClassVar[Dependence] = "text"
    needs: ClassVar[frozenset[Ability]] = frozenset(("guidance",))
    main: ClassVar[tuple[str, ...]] = ("strength", "warmup")
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = {
        "strength": {
            "weak": _published(15, 20.0, 0.0, 0.0, 0.0),
            "medium": _published(10, 1000.0, 0.01, 0.3, 0.4),
            "strong": _published(7, 2000.0, 0.025, 0.5, 0.7),
            "max": _published(0, 5000.0, 1.0, 0.5, 0.7),
        }
    }
    quick: ClassVar[Mapping[str, Any]] = {"strength": "max"}

    strength: Literal["weak", "medium", "strong", "max"] = "medium"
    scale: Annotated[float, Field(ge=0)] = 1000.0
    threshold: float = 0.01
    momentum_scale: Annotated[float, Field(ge=0)] = 0.3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.4
    warmup: Annotated[int, Field(ge=0)] = 10
    only_named: bool = False

    def fit(self, concepts: Sequence[Concept], context: FitContext) -> SamplingEdit:
        self.require(concepts, context.backbone)
        settings = {name: value for name, value in self.as_settings().items() if name != "strength"}
        guidance = SafeLatentDiffusion(concepts=all_names(concepts), **settings)
        return guided_edit(self, (guidance,), concepts, context)
