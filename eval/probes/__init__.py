"""Probes: dose-response experiments on a model, one a file; a file is found by being in this folder."""

from erasure.registry import Registry

from ..attacks import attack_names
from .base import Aim, MissingError, Models, Outcome, Probe, SampledProbe, Subject

__all__ = [
    "PROBES",
    "Aim",
    "MissingError",
    "Models",
    "Outcome",
    "Probe",
    "SampledProbe",
    "Subject",
    "attack_and_probe_names",
    "probe_class",
    "probe_names",
    "sampled_probes",
]

PROBES = Registry(Probe, "probe")
probe_class, probe_names = PROBES.get, PROBES.names


def sampled_probes() -> dict[str, type[SampledProbe]]:
    """Return the probes that `erasure attack` can run, as their prompts are fixed."""
    return {name: kind for name, kind in PROBES.classes().items() if issubclass(kind, SampledProbe)}


def attack_and_probe_names() -> tuple[str, ...]:
    """Return the names of all attacks, and of the probes that can be run like one, sorted."""
    return tuple(sorted((*attack_names(), *sampled_probes())))
