"""Attacks: searches for prompts that bring a removed concept back, one a file; a file is found by its being here."""

from erasure.registry import Registry

from .base import Attack, Goal

__all__ = ["ATTACKS", "Attack", "Goal", "attack_class", "attack_names"]

ATTACKS = Registry(Attack, "attack")
attack_class, attack_names = ATTACKS.get, ATTACKS.names
