"""Sampling settings of a measurement."""

from ..sampling import SamplingSettings
from .schema import MeasureSettings


def own_sampling(model: str, settings: MeasureSettings) -> SamplingSettings:
    """Return the sampling settings of a measurement, with the model's own where it leaves them open."""
    return SamplingSettings.of(
        model, steps=settings.steps, guidance_scale=settings.guidance_scale, batch_size=settings.batch_size
    )
