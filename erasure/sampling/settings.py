"""Settings of the sampling of images."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from diffusers import DiffusionPipeline
from pydantic import Field

from ..arguments import checks_arguments
from ..profile import profile_of
from ..registry import Settings


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """Settings of the sampling of images; the same in every call, record and command.

    Attributes:
        steps: Number of steps of the pipeline's own scheduler, >= 1.
        guidance_scale: Scale of classifier-free guidance; 1 or less samples without it; at most 1000.
        batch_size: Number of images sampled together, >= 1.
        negative_prompt: Prompt in the place of the unconditional one; "" is the pipeline's own.
        height: Height in pixels, at most 16384; None is the model's own.
        width: Width in pixels, at most 16384; None is the model's own.
    """

    name: ClassVar[str] = "sampling"

    steps: Annotated[int, Field(ge=1)] = 25
    guidance_scale: Annotated[float, Field(le=1000)] = 7.5
    batch_size: Annotated[int, Field(ge=1)] = 16
    negative_prompt: str = ""
    height: Annotated[int, Field(ge=1, le=16384)] | None = None
    width: Annotated[int, Field(ge=1, le=16384)] | None = None

    @classmethod
    def of(cls, model: str | DiffusionPipeline, **changes: int | float | str | None) -> "SamplingSettings":
        """Return the sampling defaults of a model with some changes; a change of None keeps the default."""
        defaults = profile_of(model).sampling
        values: dict[str, object] = {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale}
        return cls(**{**values, **{name: value for name, value in changes.items() if value is not None}})  # type: ignore[arg-type]

    def as_settings(self) -> dict[str, Any]:
        """Return the fields by name, without a size that is the model's own."""
        return {name: value for name, value in super().as_settings().items() if value is not None}
