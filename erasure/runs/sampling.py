"""Sampling settings of a measurement."""

from typing import Any

from .. import tinyworld
from .schema import MeasureSettings
from .world import TINYWORLD


def own_sampling(model: str, settings: MeasureSettings) -> dict[str, Any]:
    """Return steps, guidance and batch size, with the model's own where the settings leave them open."""
    own = tinyworld.SAMPLER if model == TINYWORLD else {"steps": 25, "guidance_scale": 7.5}
    return {
        "steps": settings.steps or own["steps"],
        "guidance_scale": own["guidance_scale"] if settings.guidance_scale is None else settings.guidance_scale,
        "batch_size": settings.batch_size,
    }
