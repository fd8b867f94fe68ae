"""Drawings of every object and individual: a pen on a supersampled canvas, one short function a thing.

All coordinates are in the unit square of the thing's box, x to the right and y down; so are widths.
"""

import math
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Number = float | int
Point = tuple[Number, Number]

PAINT: dict[str, RGB] = {
    "red": (214, 48, 40),
    "orange": (240, 142, 40),
    "yellow": (245, 210, 60),
    "green": (52, 150, 70),
    "blue": (58, 120, 214),
    "purple": (146, 76, 184),
    "pink": (240, 130, 178),
    "brown": (142, 92, 52),
    "black": (52, 50, 56),
    "white": (244, 244, 240),
    "grey": (150, 152, 160),
}
INK: RGB = (34, 30, 34)
STEEL: RGB = (176, 184, 194)
WOOD: RGB = (164, 108, 60)


class Pen:
    """Draws in the unit square of a box on a canvas, filled with paint or as bare lines.

    Attributes:
        lines: None to paint with fills and dark outlines; else (paper, line): every shape is filled with the paper
            colour and outlined in the line colour, as in a sketch or a neon sign.
    """

    def __init__(
        self,
        canvas: Image.Image,
        box: tuple[float, float, float, float],
        *,
        flip: bool = False,
        lines: tuple[RGB, RGB] | None = None,
        width: float = 2.0,
    ) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._box, self._flip, self._width, self.lines = box, flip, width, lines

    def _at(self, point: Point) -> Point:
        x0, y0, x1, y1 = self._box
        x = 1 - point[0] if self._flip else point[0]
        return x0 + x * (x1 - x0), y0 + point[1] * (y1 - y0)

    def poly(self, points: Sequence[Point], fill: RGB, *, outline: bool = True) -> None:
        """A closed shape."""
        spots = [self._at(p) for p in points]
        if self.lines:
            self._draw.polygon(spots, fill=self.lines[0])
        else:
            self._draw.polygon(spots, fill=fill)
        if outline or self.lines:
            ink = self.lines[1] if self.lines else INK
            self._draw.line([*spots, spots[0], spots[1]], fill=ink, width=round(self._width), joint="curve")

    def oval(
        self, x: Number, y: Number, rx: Number, ry: Number, fill: RGB, *, outline: bool = True, turn: Number = 0
    ) -> None:
        """An ellipse about (x, y) with half axes rx and ry, turned by degrees."""
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ring = [(rx * math.cos(a), ry * math.sin(a)) for a in (i * math.tau / 28 for i in range(28))]
        self.poly([(x + u * c - v * s, y + u * s + v * c) for u, v in ring], fill, outline=outline)

    def rect(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: RGB, *, outline: bool = True) -> None:
        """An upright rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline=outline)

    def line(self, points: Sequence[Point], fill: RGB = INK, width: float = 0.0) -> None:
        """An open stroke; width in units of the box, 0 for the pen's own."""
        thick = max(self._width, width * (self._box[2] - self._box[0]))
        if self.lines:
            thick = min(thick, self._width)
        ink = self.lines[1] if self.lines else fill
        self._draw.line([self._at(p) for p in points], fill=ink, width=round(thick), joint="curve")

    def dot(self, x: float, y: float, r: float, fill: RGB = INK) -> None:
        """A small filled disc without outline; in line mode it is filled with the line colour."""
        a, b = self._at((x - r, y - r)), self._at((x + r, y + r))
        ink = self.lines[1] if self.lines else fill
        self._draw.ellipse([min(a[0], b[0]), a[1], max(a[0], b[0]), b[1]], fill=ink)


def shade(colour: RGB, factor: Number) -> RGB:
    """Return the colour made darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(round(255 - (255 - c) / factor) for c in colour)  # type: ignore[return-value]


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


DRAW: dict[str, Callable[[Pen, random.Random, RGB], None]] = {
    f.__name__.capitalize() if f in (biscuit, mittens, rusty) else f.__name__: f
    for f in (
        *(
            cat,
            dog,
            rabbit,
            fish,
            catfish,
            bird,
            tree,
            flower,
            mushroom,
            cactus,
            house,
            church,
            castle,
            car,
            cart,
            boat,
        ),
        *(rocket, umbrella, guitar, hammer, scissors, gun, knife, bomb, biscuit, mittens, rusty),
    )
}
"""How each thing is drawn. Individuals stand under their names, objects under their words."""
