"""Sampling: images from prompts and seeds, and latents on the way for training."""

from .images import Pair, grid, half_noised, sample, sample_pairs, sample_part
from .latents import Latents, noise, scheduled_prediction, trajectory_latents
from .settings import SamplingSettings

__all__ = [
    "Latents",
    "Pair",
    "SamplingSettings",
    "grid",
    "half_noised",
    "noise",
    "sample",
    "sample_pairs",
    "sample_part",
    "scheduled_prediction",
    "trajectory_latents",
]
