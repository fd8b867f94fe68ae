"""Sampling settings of a measurement."""

from typing import Any

from ..profile import profile_of
from .schema import MeasureSettings


def own_sampling(model: str, settings: MeasureSettings) -> dict[str, Any]:
    """Return steps, guidance and batch size, with the model's own where the settings leave them open."""
    defaults = profile_of(model).sampling
    return {
        "steps": settings.steps or defaults.steps,
        "guidance_scale": defaults.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        "batch_size": settings.batch_size,
    }
