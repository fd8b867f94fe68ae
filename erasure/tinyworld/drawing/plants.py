"""Drawings: plants."""

import math
import random

from .pen import PAINT, RGB, WOOD, Pen, shade


def tree(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A tree: trunk and round crown."""
    del colour
    leaf = (46, 140, 58)
    w = rng.uniform(0.06, 0.09)
    pen.poly([(0.5 - w, 0.55), (0.5 + w, 0.55), (0.5 + w * 1.5, 0.99), (0.5 - w * 1.5, 0.99)], WOOD)
    for x, y, r in ((0.28, 0.44, 0.22), (0.72, 0.44, 0.22), (0.5, 0.24, 0.24)):
        pen.oval(x, y, r, r, leaf)
    pen.oval(0.5, 0.42, 0.24, 0.22, leaf, outline=False)


def flower(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A flower with six petals."""
    bend = rng.uniform(-0.05, 0.05)
    pen.line([(0.5, 0.45), (0.5 + bend, 0.75), (0.5, 0.99)], (52, 140, 60), 0.05)
    pen.oval(0.36 + bend, 0.82, 0.13, 0.055, (72, 170, 80), turn=25)
    pen.oval(0.64 + bend, 0.76, 0.13, 0.055, (72, 170, 80), turn=-25)
    for i in range(6):
        a = i * math.tau / 6 + bend * 6
        pen.oval(0.5 + 0.21 * math.cos(a), 0.31 + 0.21 * math.sin(a), 0.115, 0.115, colour)
    pen.oval(0.5, 0.31, 0.12, 0.12, PAINT["yellow"] if colour != PAINT["yellow"] else PAINT["brown"])


def mushroom(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A mushroom with a spotted cap."""
    w = rng.uniform(0.11, 0.15)
    pen.poly([(0.5 - w, 0.5), (0.5 + w, 0.5), (0.5 + w * 1.3, 0.97), (0.5 - w * 1.3, 0.97)], (240, 230, 208))
    cap = [(0.5 + 0.46 * math.cos(a), 0.54 + 0.46 * math.sin(a)) for a in (math.pi * (1 + i / 16) for i in range(17))]
    pen.poly(cap, colour)
    for x, y, r in ((0.30, 0.40, 0.065), (0.52, 0.26, 0.075), (0.72, 0.42, 0.06)):
        pen.oval(x, y, r, r, PAINT["white"], outline=False)


def cactus(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A cactus with two arms."""
    del colour
    green = (62, 150, 84)
    a, b = rng.uniform(0.20, 0.32), rng.uniform(0.22, 0.36)
    for x, top, y in ((0.12, a, 0.62), (0.76, b, 0.54)):
        pen.rect(min(x + 0.02, 0.44), y - 0.06, max(x + 0.12, 0.58), y + 0.06, green)
        pen.rect(x, top, x + 0.13, y + 0.06, green)
    pen.oval(0.5, 0.16, 0.13, 0.13, green)
    pen.rect(0.37, 0.16, 0.63, 0.98, green)
    pen.rect(0.39, 0.13, 0.61, 0.22, green, outline=False)
    for x in (0.46, 0.54):
        pen.line([(x, 0.14), (x, 0.95)], shade(green, 0.6))
