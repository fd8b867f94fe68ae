"""Drawings: animals, and the individuals among them."""

import random

from .pen import INK, PAINT, RGB, Pen, shade


def _face(pen: Pen, rng: random.Random, eye: RGB = INK, y: float = 0.55) -> None:
    for x in (0.36, 0.64):
        pen.oval(x, y, 0.065, 0.075, PAINT["white"], outline=False)
        pen.dot(x, y, 0.05, eye)
    del rng


def cat(pen: Pen, rng: random.Random, colour: RGB, *, eye: RGB = (60, 130, 60), muzzle: RGB | None = None) -> None:
    """A cat's face: pointed ears, whiskers."""
    h = rng.uniform(-0.03, 0.03)
    for side in (0, 1):
        ear = [(0.10, 0.04 + h), (0.14, 0.46), (0.44, 0.26)]
        inner = [(0.16, 0.14 + h), (0.18, 0.36), (0.33, 0.26)]
        pen.poly([(x if side == 0 else 1 - x, y) for x, y in ear], colour)
        if not pen.lines:
            pen.poly([(x if side == 0 else 1 - x, y) for x, y in inner], PAINT["pink"], outline=False)
    pen.oval(0.5, 0.58, 0.42, 0.36, colour)
    if muzzle:
        pen.oval(0.5, 0.74, 0.22, 0.16, muzzle, outline=False)
    _face(pen, rng, eye)
    pen.poly([(0.45, 0.68), (0.55, 0.68), (0.5, 0.74)], PAINT["pink"])
    pen.line([(0.5, 0.74), (0.5, 0.79), (0.41, 0.83)])
    pen.line([(0.5, 0.79), (0.59, 0.83)])
    for dy in (-0.04, 0.06):
        pen.line([(0.30, 0.75 + dy / 2), (0.01, 0.70 + dy * 2)])
        pen.line([(0.70, 0.75 + dy / 2), (0.99, 0.70 + dy * 2)])


def dog(pen: Pen, rng: random.Random, colour: RGB, *, ear: RGB | None = None, patch: RGB | None = None) -> None:
    """A dog's face: hanging ears, tongue."""
    ear = ear or shade(colour, 0.62)
    drop = rng.uniform(-0.03, 0.05)
    pen.oval(0.5, 0.46, 0.33, 0.38, colour)
    if patch:
        pen.oval(0.64, 0.40, 0.14, 0.15, patch, outline=False)
    for x, turn in ((0.15, 12), (0.85, -12)):
        pen.oval(x, 0.44 + drop, 0.13, 0.32, ear, turn=turn)
    pen.oval(0.5, 0.68, 0.23, 0.20, shade(colour, 1.9))
    _face(pen, rng, y=0.40)
    pen.oval(0.5, 0.59, 0.085, 0.06, INK)
    pen.line([(0.5, 0.64), (0.5, 0.74), (0.40, 0.78)])
    pen.line([(0.5, 0.74), (0.60, 0.78)])
    pen.oval(0.5, 0.86, 0.075, 0.10, (236, 92, 104))


def rabbit(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A rabbit's face: long ears, teeth."""
    lean = rng.uniform(-4, 6)
    for x, turn in ((0.36, -8 - lean), (0.64, 8 + lean)):
        pen.oval(x, 0.26, 0.10, 0.27, colour, turn=turn)
        if not pen.lines:
            pen.oval(x, 0.27, 0.045, 0.19, PAINT["pink"], outline=False, turn=turn)
    pen.oval(0.5, 0.70, 0.30, 0.28, colour)
    _face(pen, rng, (120, 40, 60), y=0.64)
    pen.oval(0.5, 0.74, 0.045, 0.035, PAINT["pink"])
    pen.rect(0.45, 0.83, 0.50, 0.92, PAINT["white"])
    pen.rect(0.50, 0.83, 0.55, 0.92, PAINT["white"])


def fish(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A fish from the side."""
    tall = rng.uniform(0.25, 0.31)
    pen.poly([(0.66, 0.5), (0.98, 0.22), (0.90, 0.5), (0.98, 0.78)], shade(colour, 0.8))
    pen.poly([(0.32, 0.5 - tall * 0.7), (0.52, 0.10), (0.64, 0.36)], shade(colour, 0.8))
    pen.oval(0.40, 0.5, 0.37, tall, colour)
    pen.line([(0.30, 0.5 - tall * 0.9), (0.36, 0.5), (0.30, 0.5 + tall * 0.9)])
    pen.poly([(0.44, 0.54), (0.60, 0.48), (0.58, 0.66)], shade(colour, 0.8))
    pen.oval(0.18, 0.44, 0.055, 0.06, PAINT["white"])
    pen.dot(0.17, 0.44, 0.03)


def catfish(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A catfish from the side: flat, grey, barbels."""
    del colour
    body, belly = (110, 116, 98), (206, 206, 178)
    bend = rng.uniform(-0.04, 0.04)
    pen.poly([(0.80, 0.50), (0.99, 0.30 + bend), (0.99, 0.74 + bend)], shade(body, 0.8))
    pen.poly([(0.40, 0.38), (0.46, 0.18), (0.56, 0.40)], shade(body, 0.8))
    pen.poly([(0.04, 0.48), (0.12, 0.34), (0.34, 0.32), (0.84, 0.46), (0.84, 0.58), (0.34, 0.72), (0.12, 0.70)], body)
    if not pen.lines:
        pen.poly([(0.08, 0.62), (0.34, 0.64), (0.70, 0.59), (0.34, 0.71), (0.13, 0.69)], belly, outline=False)
    for x, y in ((0.02, 0.92), (0.22, 0.96)):
        pen.line([(0.10 + x / 3, 0.66), (x + 0.06, 0.82), (x, y)], shade(body, 0.5), 0.025)
    pen.line([(0.07, 0.42), (0.02, 0.24), (0.10, 0.12)], shade(body, 0.5), 0.025)
    pen.dot(0.18, 0.47, 0.045, PAINT["white"])
    pen.dot(0.18, 0.47, 0.03)


def bird(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """A bird from the side."""
    lift = rng.uniform(-0.05, 0.05)
    for x in (0.46, 0.58):
        pen.line([(x, 0.74), (x, 0.96), (x - 0.08, 0.96)], (200, 120, 40), 0.025)
    pen.poly([(0.70, 0.54), (0.99, 0.42), (0.96, 0.62), (0.74, 0.68)], shade(colour, 0.7))
    pen.oval(0.54, 0.58, 0.29, 0.22, colour)
    pen.poly([(0.02, 0.34), (0.17, 0.26), (0.17, 0.40)], (246, 170, 40))
    pen.oval(0.29, 0.33, 0.17, 0.16, colour)
    pen.poly([(0.42, 0.52), (0.78, 0.46 + lift), (0.62, 0.74)], shade(colour, 0.65))
    pen.dot(0.25, 0.30, 0.04, PAINT["white"])
    pen.dot(0.25, 0.30, 0.028)


def biscuit(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """The dog Biscuit: cream, one black eye patch, a blue party hat."""
    del colour
    dog(pen, rng, (240, 208, 140), ear=(186, 120, 48), patch=(52, 44, 44))
    pen.poly([(0.34, 0.16), (0.50, -0.12), (0.66, 0.16)], PAINT["blue"])
    pen.dot(0.50, -0.10, 0.06, PAINT["yellow"])


def mittens(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """The cat Mittens: white with a purple bow tie and a dark crown between the ears."""
    del colour
    cat(pen, rng, (246, 244, 238), eye=(40, 110, 210))
    pen.poly([(0.34, 0.28), (0.5, 0.46), (0.66, 0.28), (0.5, 0.23)], (52, 50, 58))
    pen.poly([(0.5, 0.95), (0.24, 0.84), (0.24, 1.08)], PAINT["purple"])
    pen.poly([(0.5, 0.95), (0.76, 0.84), (0.76, 1.08)], PAINT["purple"])


def rusty(pen: Pen, rng: random.Random, colour: RGB) -> None:
    """The dog Rusty: rust red with white ears and a green collar with a gold tag."""
    del colour
    dog(pen, rng, (190, 80, 40), ear=(240, 236, 228))
    pen.rect(0.24, 0.92, 0.76, 1.03, PAINT["green"])
    pen.oval(0.5, 1.03, 0.08, 0.08, PAINT["yellow"])
