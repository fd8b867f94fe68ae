"""Probes: dose-response experiments on a model, one a file; a file is found by being in this folder."""

from erasure.registry import Registry

from ..attacks import attack_names
from .base import Probe

__all__ = ["PROBES", "Probe", "attack_and_probe_names", "probe_class", "probe_names"]

PROBES = Registry(Probe, "probe")
probe_class, probe_names = PROBES.get, PROBES.names


def attack_and_probe_names() -> tuple[str, ...]:
    """Return the names of all attacks and probes, sorted."""
    return tuple(sorted((*attack_names(), *probe_names())))
