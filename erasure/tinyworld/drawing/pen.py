"""Pen and colours of the drawings.

All coordinates are in the unit square of the thing's box, x to the right and y down; so are widths.
"""

import math
from collections.abc import Sequence

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
    """Pen in the unit square of a box on a canvas, filled with paint or as bare lines.

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
        """Draw a closed shape."""
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
        """Draw an ellipse about (x, y) with half axes rx and ry, turned by degrees."""
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        ring = [(rx * math.cos(a), ry * math.sin(a)) for a in (i * math.tau / 28 for i in range(28))]
        self.poly([(x + u * c - v * s, y + u * s + v * c) for u, v in ring], fill, outline=outline)

    def rect(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: RGB, *, outline: bool = True) -> None:
        """Draw an upright rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline=outline)

    def line(self, points: Sequence[Point], fill: RGB = INK, width: float = 0.0) -> None:
        """Draw an open stroke; width in units of the box, 0 for the pen's own."""
        thick = max(self._width, width * (self._box[2] - self._box[0]))
        if self.lines:
            thick = min(thick, self._width)
        ink = self.lines[1] if self.lines else fill
        self._draw.line([self._at(p) for p in points], fill=ink, width=round(thick), joint="curve")

    def dot(self, x: float, y: float, r: float, fill: RGB = INK) -> None:
        """Draw a small filled disc without outline; in line mode it is filled with the line colour."""
        a, b = self._at((x - r, y - r)), self._at((x + r, y + r))
        ink = self.lines[1] if self.lines else fill
        self._draw.ellipse([min(a[0], b[0]), a[1], max(a[0], b[0]), b[1]], fill=ink)


def shade(colour: RGB, factor: Number) -> RGB:
    """Return the colour made darker (factor < 1) or lighter (factor > 1)."""
    if factor <= 1:
        return tuple(round(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(round(255 - (255 - c) / factor) for c in colour)  # type: ignore[return-value]
