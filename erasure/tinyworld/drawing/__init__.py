"""Drawings of every object and individual: a pen on a supersampled canvas, one short function a thing."""

import random
from collections.abc import Callable

from . import animals, buildings, plants, tools, vehicles
from .pen import INK, PAINT, RGB, Pen

__all__ = ["DRAW", "INK", "PAINT", "RGB", "Pen"]

DRAW: dict[str, Callable[[Pen, random.Random, RGB], None]] = {
    "cat": animals.cat,
    "dog": animals.dog,
    "rabbit": animals.rabbit,
    "fish": animals.fish,
    "catfish": animals.catfish,
    "bird": animals.bird,
    "tree": plants.tree,
    "flower": plants.flower,
    "mushroom": plants.mushroom,
    "cactus": plants.cactus,
    "house": buildings.house,
    "church": buildings.church,
    "castle": buildings.castle,
    "car": vehicles.car,
    "cart": vehicles.cart,
    "boat": vehicles.boat,
    "rocket": vehicles.rocket,
    "umbrella": tools.umbrella,
    "guitar": tools.guitar,
    "hammer": tools.hammer,
    "scissors": tools.scissors,
    "gun": tools.gun,
    "knife": tools.knife,
    "bomb": tools.bomb,
    "Biscuit": animals.biscuit,
    "Mittens": animals.mittens,
    "Rusty": animals.rusty,
}
"""Drawing function of each object by its word and of each individual by its name."""
