"""Drawings: buildings."""

import random

from .pen import INK, RGB, WOOD, Pen


def house(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A house with a red roof."""
    peak = rng.uniform(0.06, 0.14)
    pen.rect(0.70, 0.12, 0.80, 0.40, (150, 80, 66))
    pen.rect(0.14, 0.46, 0.86, 0.97, colour)
    pen.poly([(0.03, 0.48), (0.5, peak), (0.97, 0.48)], (186, 62, 50))
    pen.rect(0.42, 0.66, 0.58, 0.97, WOOD)
    for x in (0.20, 0.65):
        pen.rect(x, 0.58, x + 0.15, 0.74, (140, 200, 240))


def church(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A church with a cross on its steeple."""
    del colour
    wall, roof = (228, 222, 210), (86, 92, 122)
    wide = rng.uniform(0.92, 0.98)
    pen.rect(0.38, 0.60, wide, 0.98, wall)
    pen.poly([(0.34, 0.62), (0.46, 0.44), (wide - 0.06, 0.44), (wide + 0.02, 0.62)], roof)
    pen.rect(0.10, 0.40, 0.40, 0.98, wall)
    pen.poly([(0.06, 0.42), (0.25, 0.14), (0.44, 0.42)], roof)
    pen.line([(0.25, 0.15), (0.25, 0.00)], (160, 120, 30), 0.03)
    pen.line([(0.18, 0.06), (0.32, 0.06)], (160, 120, 30), 0.03)
    pen.poly([(0.18, 0.98), (0.18, 0.78), (0.25, 0.70), (0.32, 0.78), (0.32, 0.98)], WOOD)
    for x in (0.52, 0.74):
        pen.poly([(x, 0.88), (x, 0.74), (x + 0.05, 0.68), (x + 0.10, 0.74), (x + 0.10, 0.88)], (120, 180, 226))


def castle(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A castle with two towers."""
    del colour
    stone = (164, 160, 166)
    top = rng.uniform(0.14, 0.22)
    for x in (0.34, 0.46, 0.58):
        pen.rect(x, 0.38, x + 0.08, 0.48, stone)
    pen.rect(0.24, 0.46, 0.76, 0.98, stone)
    for x in (0.03, 0.69):
        for i in range(3):
            pen.rect(x + i * 0.107, top - 0.09, x + i * 0.107 + 0.065, top + 0.02, stone)
        pen.rect(x, top, x + 0.28, 0.98, stone)
        pen.rect(x + 0.10, top + 0.16, x + 0.18, top + 0.32, INK)
    pen.poly([(0.40, 0.98), (0.40, 0.76), (0.50, 0.66), (0.60, 0.76), (0.60, 0.98)], (92, 60, 40))
