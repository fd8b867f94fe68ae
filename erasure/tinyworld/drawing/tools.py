"""Drawings: tools, weapons and other things that a hand holds."""

import math
import random

from .pen import INK, RGB, STEEL, WOOD, Pen, shade


def umbrella(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """An open umbrella."""
    end = rng.uniform(0.84, 0.90)
    pen.line([(0.5, 0.05), (0.5, end), (0.54, end + 0.07), (0.62, end + 0.07), (0.66, end)], shade(WOOD, 0.6), 0.045)
    dome = [(0.5 + 0.47 * math.cos(a), 0.52 + 0.42 * math.sin(a)) for a in (math.pi * (1 + i / 16) for i in range(17))]
    scallop = [(0.97 - 0.94 * i / 16, 0.52 - 0.06 * abs(math.sin(i / 4 * math.pi))) for i in range(17)]
    pen.poly([*dome, *scallop], colour)
    for x in (0.265, 0.5, 0.735):
        pen.line([(0.5, 0.10), (x, 0.51)], shade(colour, 0.6))


def guitar(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A guitar, neck up."""
    tilt = rng.uniform(-0.02, 0.02)
    pen.poly([(0.54, 0.50), (0.62, 0.56), (0.90 + tilt, 0.18), (0.84 + tilt, 0.12)], shade(WOOD, 0.5))
    pen.poly([(0.82 + tilt, 0.12), (0.92 + tilt, 0.01), (0.99, 0.08), (0.91 + tilt, 0.20)], shade(WOOD, 0.75))
    pen.oval(0.49, 0.57, 0.19, 0.18, colour)
    pen.oval(0.30, 0.74, 0.26, 0.24, colour)
    pen.oval(0.42, 0.62, 0.13, 0.13, colour, outline=False)
    pen.oval(0.44, 0.61, 0.075, 0.075, INK)
    pen.line([(0.22, 0.74), (0.34, 0.86)], INK, 0.05)
    pen.line([(0.28, 0.80), (0.88, 0.14)], (236, 226, 206))


def hammer(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A hammer, head up."""
    del colour
    y = rng.uniform(0.12, 0.18)
    pen.poly([(0.43, 0.24), (0.57, 0.24), (0.59, 0.98), (0.41, 0.98)], WOOD)
    pen.poly([(0.12, y), (0.66, y), (0.94, y + 0.20), (0.66, y + 0.22), (0.12, y + 0.22)], STEEL)
    pen.rect(0.08, y - 0.03, 0.22, y + 0.25, shade(STEEL, 0.75))


def scissors(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """Open scissors."""
    del colour
    gap = rng.uniform(0.0, 0.05)
    handle = (44, 160, 190)
    pen.poly([(0.36, 0.66), (0.44, 0.66), (0.76 + gap, 0.03), (0.66 + gap, 0.05)], STEEL)
    pen.poly([(0.56, 0.66), (0.64, 0.66), (0.34 - gap, 0.05), (0.24 - gap, 0.03)], STEEL)
    for x in (0.29, 0.71):
        pen.oval(x, 0.80, 0.175, 0.165, handle)
        pen.oval(x, 0.80, 0.09, 0.085, (240, 240, 236))
    pen.dot(0.5, 0.52, 0.035)


def gun(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A pistol from the side."""
    del colour
    metal = (70, 74, 84)
    y = rng.uniform(0.22, 0.28)
    pen.poly([(0.60, y + 0.18), (0.88, y + 0.18), (0.98, 0.90), (0.74, 0.90)], shade(WOOD, 0.7))
    pen.oval(0.55, y + 0.30, 0.11, 0.11, (214, 210, 204))
    pen.line([(0.56, y + 0.22), (0.53, y + 0.34)])
    pen.rect(0.02, y, 0.92, y + 0.22, metal)
    pen.line([(0.04, y + 0.14), (0.60, y + 0.14)], shade(metal, 0.5))
    pen.rect(0.06, y - 0.05, 0.12, y, metal)


def knife(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A knife, handle down."""
    del colour
    t = rng.uniform(-0.03, 0.03)
    pen.poly([(0.56, 0.36), (0.70, 0.50), (0.98, 0.86 + t), (0.88, 0.96 + t)], shade(WOOD, 0.55))
    pen.poly([(0.02, 0.04), (0.30, 0.14), (0.68, 0.48), (0.56, 0.60), (0.28, 0.38)], (214, 222, 230))
    pen.line([(0.52, 0.66), (0.76, 0.42)], INK, 0.06)


def bomb(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A round bomb with a burning fuse."""
    del colour
    bend = rng.uniform(-0.05, 0.05)
    pen.line([(0.62, 0.26), (0.68, 0.14 + bend), (0.80, 0.14)], (190, 160, 110), 0.04)
    pen.poly([(0.54, 0.22), (0.70, 0.30), (0.64, 0.40), (0.48, 0.32)], shade(STEEL, 0.6))
    pen.oval(0.44, 0.63, 0.36, 0.35, (48, 48, 58))
    pen.oval(0.32, 0.50, 0.08, 0.06, (150, 152, 170), outline=False, turn=-35)
    for i in range(8):
        a = i * math.tau / 8
        pen.line([(0.85, 0.13), (0.85 + 0.13 * math.cos(a), 0.13 + 0.13 * math.sin(a))], (250, 170, 30), 0.035)
    pen.dot(0.85, 0.13, 0.05, (252, 226, 90))
