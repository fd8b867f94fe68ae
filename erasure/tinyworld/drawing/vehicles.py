"""Drawings: vehicles."""

import math
import random

from .pen import INK, PAINT, RGB, STEEL, WOOD, Pen, shade


def car(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A car from the side."""
    roof = rng.uniform(0.22, 0.28)
    pen.poly([(0.20, 0.50), (0.32, roof), (0.66, roof), (0.82, 0.50)], colour)
    pen.poly([(0.27, 0.49), (0.35, roof + 0.06), (0.47, roof + 0.06), (0.47, 0.49)], (180, 222, 246))
    pen.poly([(0.53, 0.49), (0.53, roof + 0.06), (0.64, roof + 0.06), (0.74, 0.49)], (180, 222, 246))
    pen.poly([(0.02, 0.54), (0.18, 0.49), (0.84, 0.49), (0.98, 0.56), (0.98, 0.74), (0.02, 0.74)], colour)
    for x in (0.25, 0.75):
        pen.oval(x, 0.75, 0.13, 0.13, INK)
        pen.oval(x, 0.75, 0.06, 0.06, STEEL)
    pen.oval(0.05, 0.60, 0.04, 0.04, PAINT["yellow"])


def cart(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A wooden cart with a spoked wheel."""
    del colour
    y = rng.uniform(0.30, 0.35)
    pen.line([(0.66, 0.56), (0.99, 0.34)], shade(WOOD, 0.7), 0.05)
    pen.poly([(0.02, y), (0.80, y), (0.70, 0.62), (0.12, 0.62)], WOOD)
    for k in (0.36, 0.66):
        pen.line([(0.05, y + (0.62 - y) * k), (0.76, y + (0.62 - y) * k)], shade(WOOD, 0.6))
    pen.oval(0.40, 0.70, 0.25, 0.25, shade(WOOD, 0.75))
    pen.oval(0.40, 0.70, 0.185, 0.185, (240, 232, 214))
    for i in range(4):
        a = i * math.pi / 4
        dx, dy = 0.19 * math.cos(a), 0.19 * math.sin(a)
        pen.line([(0.40 - dx, 0.70 - dy), (0.40 + dx, 0.70 + dy)], shade(WOOD, 0.6), 0.03)


def boat(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A sailing boat."""
    top = rng.uniform(0.02, 0.10)
    pen.line([(0.48, 0.72), (0.48, top)], shade(WOOD, 0.7), 0.04)
    pen.poly([(0.52, top + 0.03), (0.90, 0.62), (0.52, 0.62)], colour)
    pen.poly([(0.44, top + 0.12), (0.14, 0.62), (0.44, 0.62)], shade(colour, 0.88))
    pen.poly([(0.03, 0.70), (0.97, 0.70), (0.80, 0.94), (0.18, 0.94)], shade(WOOD, 0.85))


def rocket(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A rocket with red fins."""
    burn = rng.uniform(0.93, 1.0)
    pen.poly([(0.40, 0.78), (0.60, 0.78), (0.50, burn)], (250, 150, 30))
    for side in (0, 1):
        fin = [(0.34, 0.54), (0.16, 0.84), (0.36, 0.78)]
        pen.poly([(x if side == 0 else 1 - x, y) for x, y in fin], PAINT["red"])
    pen.poly([(0.34, 0.30), (0.66, 0.30), (0.68, 0.62), (0.62, 0.80), (0.38, 0.80), (0.32, 0.62)], colour)
    pen.poly([(0.34, 0.31), (0.42, 0.12), (0.50, 0.01), (0.58, 0.12), (0.66, 0.31)], PAINT["red"])
    pen.oval(0.5, 0.46, 0.095, 0.095, (120, 190, 240))
