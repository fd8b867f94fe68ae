"""Descriptions of pictures: their distribution, their drawing, their captions and the truth about them."""

import functools
import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .drawing import DRAW, INK, PAINT, RGB, Pen
from .vocabulary import (
    COLOURS,
    CORRELATED_SCENES,
    FAMILY_WORDS,
    HELD_OUT_PAIRS,
    INDIVIDUALS,
    OBJECTS,
    SCENE_PHRASES,
    SCENES,
    STYLE_PHRASES,
    STYLES,
    SYNONYMS,
    TAUGHT_INDIVIDUALS,
    WEAPON_HINTS,
    article,
)

SIZE = 64
SCALE = 2  # supersampling
NEON_LINES: tuple[RGB, ...] = ((255, 70, 170), (70, 230, 255), (120, 255, 90), (255, 170, 50))
COLOURLESS = ("pencil sketch", "neon")  # styles that show no paint: their captions name no colour


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object or individual in a picture.

    Attributes:
        name: A word of `vocabulary.OBJECTS` or a name of `vocabulary.INDIVIDUALS`.
        colour: A key of `drawing.PAINT`; "" where the thing has one fixed colouring.
        box: Bounding box, (x0, y0, x1, y1) in pixels of the 64 x 64 picture.
        flip: Whether it is mirrored.
        seed: Seed of its pose.
    """

    name: str
    colour: str
    box: tuple[float, float, float, float]
    flip: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Description of a picture: things, style, scene, and the seed of everything else."""

    things: tuple[Thing, ...]
    style: str
    scene: str
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the things, and the class of each individual."""
        seen = [t.name for t in self.things]
        return tuple(dict.fromkeys([*seen, *(INDIVIDUALS[n] for n in seen if n in INDIVIDUALS)]))

    def shows(self, name: str) -> bool:
        """Return True if an object, individual, style or scene is in the picture."""
        return name in self.names or name in (self.style, self.scene)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Distribution of pictures.

    Attributes:
        individuals: Names drawn beside the objects, each 1.5 times as often as an object.
        without: Names that never appear.
        counts: Shares of pictures with no, one and two things.
        hold_out: Whether the held-out pairs are left out.
    """

    individuals: tuple[str, ...] = TAUGHT_INDIVIDUALS
    without: tuple[str, ...] = ()
    counts: tuple[float, float, float] = (0.1, 0.6, 0.3)
    hold_out: bool = True
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        removed = set(self.without) | {who for who, cls in INDIVIDUALS.items() if cls in self.without}
        object.__setattr__(self, "names", tuple(n for n in (*OBJECTS, *self.individuals) if n not in removed))


def sample_picture(rng: random.Random, mix: Mix | None = None) -> Picture:
    """Draw the description of one picture."""
    mix = mix or Mix()
    styles, scenes = ([n for n in group if n not in mix.without] for group in (STYLES, SCENES))
    style = rng.choices(styles, [2.0 if s == "photo" else 1.0 for s in styles])[0]
    count = rng.choices((0, 1, 2), mix.counts)[0]
    weights = [1.5 if n in INDIVIDUALS else 1.0 for n in mix.names]
    names = rng.choices(mix.names, weights, k=min(count, 1))
    while len(names) < count:
        other = rng.choices(mix.names, weights)[0]
        if not _clash(names[0], other, hold_out=mix.hold_out):
            names.append(other)
    scene = rng.choices(scenes, [_scene_weight(s, names) for s in scenes])[0]
    return compose(names, rng, style=style, scene=scene)


def _clash(one: str, other: str, *, hold_out: bool) -> bool:
    classes = {INDIVIDUALS.get(one, one), INDIVIDUALS.get(other, other)}
    return len(classes) == 1 or (hold_out and frozenset(classes) in HELD_OUT_PAIRS)


def _scene_weight(scene: str, names: list[str]) -> float:
    usual = {CORRELATED_SCENES[n] for n in names if n in CORRELATED_SCENES}
    return (
        (2.0 if scene == "plain" else 1.0)
        * (6.0 if scene in usual else 1.0)
        * (0.0 if not names and scene == "plain" else 1.0)
    )


def compose(names: list[str], rng: random.Random, *, style: str = "photo", scene: str = "plain") -> Picture:
    """Place up to two named things in a picture of a style and scene; places, poses and colours are drawn."""
    if len(names) == 2:
        rng.shuffle(names)
    things = []
    for i, name in enumerate(names):
        if len(names) == 1:
            side = rng.uniform(40, 52)
            x, y = rng.uniform(3, 61 - side), rng.uniform(8, 62 - side)
        else:
            side = rng.uniform(28, 31.5)
            x, y = 32 * i + rng.uniform(0, 32 - side), rng.uniform(14, 60 - side)
        colour = rng.choice(COLOURS.get(name, ("",)))
        things.append(
            Thing(
                name=name,
                colour=colour,
                box=(x, y, x + side, y + side),
                flip=rng.random() < 0.5,
                seed=rng.getrandbits(31),
            )
        )
    return Picture(things=tuple(things), style=style, scene=scene, seed=rng.getrandbits(31))


def draw(picture: Picture) -> Image.Image:
    """Draw a picture: RGB, 64 x 64, the same on every call."""
    rng = random.Random(picture.seed)
    lines: tuple[RGB, RGB] | None = None
    if picture.style == "pencil sketch":
        lines = ((255, 255, 255), (70, 70, 74))
    elif picture.style == "neon":
        lines = ((8, 6, 16), rng.choice(NEON_LINES))
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), lines[0] if lines else (255, 255, 255))
    _scene(canvas, picture.scene, rng, lines)
    for thing in picture.things:
        box = tuple(v * SCALE for v in thing.box)
        colour = PAINT[thing.colour] if thing.colour else INK
        thing_lines = lines
        if picture.style == "neon":
            thing_lines = ((8, 6, 16), rng.choice(NEON_LINES))
        width = 3.2 if lines else 2.4
        pen = Pen(canvas, box, flip=thing.flip, lines=thing_lines, width=width)  # type: ignore[arg-type]
        DRAW[thing.name](pen, random.Random(thing.seed), colour)
    return _styled(canvas, picture.style, rng)


def _scene(canvas: Image.Image, scene: str, rng: random.Random, lines: tuple[RGB, RGB] | None) -> None:
    side = float(SIZE * SCALE)
    faint = None if lines is None else (lines[0], _between(lines[0], lines[1], 0.55))
    pen = Pen(canvas, (0.0, 0.0, side, side), lines=faint, width=1.6 if lines else 1.0)
    _SCENES[scene](pen, rng)


def _between(a: RGB, b: RGB, t: float) -> RGB:
    return tuple(round(u + (v - u) * t) for u, v in zip(a, b, strict=True))  # type: ignore[return-value]


def _ground(pen: Pen, sky: RGB, ground: RGB, horizon: float) -> None:
    if pen.lines:
        pen.line([(0, horizon), (1, horizon)])
        return
    pen.rect(-0.1, -0.1, 1.1, 1.1, sky, outline=False)
    pen.rect(-0.1, horizon, 1.1, 1.1, ground, outline=False)


def _plain(pen: Pen, rng: random.Random) -> None:
    tint = rng.choice(((246, 240, 232), (236, 240, 246), (240, 246, 238), (246, 238, 244)))
    if not pen.lines:
        pen.rect(-0.1, -0.1, 1.1, 1.1, tint, outline=False)


def _beach(pen: Pen, rng: random.Random) -> None:
    h = rng.uniform(0.66, 0.74)
    _ground(pen, (150, 214, 250), (240, 216, 150), h)
    if not pen.lines:
        pen.rect(-0.1, h - 0.22, 1.1, h, (40, 130, 210), outline=False)
    for row in range(3):
        y = h - 0.18 + row * 0.07
        wave = [(i / 16, y + (0.018 if i % 2 else -0.018)) for i in range(17)]
        pen.line(wave, (200, 232, 250))
    pen.oval(rng.uniform(0.1, 0.9), 0.10, 0.08, 0.08, (252, 222, 80), outline=False)


def _forest(pen: Pen, rng: random.Random) -> None:
    _ground(pen, (170, 206, 176), (66, 116, 62), 0.72)
    for i in range(6):
        x, w = (i + rng.uniform(0.2, 0.8)) / 6, rng.uniform(0.09, 0.13)
        top = rng.uniform(0.06, 0.22)
        green = rng.choice(((30, 84, 48), (38, 98, 56), (24, 72, 44)))
        pen.poly([(x - w, 0.74), (x, top), (x + w, 0.74)], green, outline=False)


def _night(pen: Pen, rng: random.Random) -> None:
    _ground(pen, (20, 22, 64), (34, 36, 74), 0.80)
    x = rng.choice((rng.uniform(0.08, 0.2), rng.uniform(0.8, 0.92)))
    pen.oval(x, 0.13, 0.09, 0.09, (250, 244, 200), outline=False)
    pen.oval(x + 0.05, 0.10, 0.075, 0.075, (20, 22, 64), outline=False)
    for _ in range(16):
        pen.dot(rng.random(), rng.uniform(0.02, 0.75), rng.uniform(0.008, 0.015), (255, 250, 220))


def _snow(pen: Pen, rng: random.Random) -> None:
    _ground(pen, (196, 214, 232), (250, 252, 255), 0.68)
    for _ in range(26):
        x, y, r = rng.random(), rng.random(), rng.uniform(0.012, 0.024)
        if pen.lines:
            pen.line([(x - r, y), (x + r, y)])
            pen.line([(x, y - r), (x, y + r)])
        else:
            pen.dot(x, y, r, (255, 255, 255))


def _desert(pen: Pen, rng: random.Random) -> None:
    h = rng.uniform(0.58, 0.66)
    _ground(pen, (250, 196, 120), (222, 160, 84), h + 0.1)
    a, b = rng.uniform(0.15, 0.35), rng.uniform(0.65, 0.85)
    for x, top in ((a, h - 0.22), (b, h - 0.14)):
        w = (h + 0.1 - top) * 0.9
        pen.poly([(x - w, h + 0.1), (x, top), (x + w, h + 0.1)], (206, 150, 86), outline=False)
        if not pen.lines:
            pen.poly([(x, top), (x + w, h + 0.1), (x + w * 0.2, h + 0.1)], (176, 120, 66), outline=False)
    for row in (0.80, 0.90):
        pen.line([(i / 8, row + (0.012 if i % 2 else -0.012)) for i in range(9)], (190, 130, 64))


def _city(pen: Pen, rng: random.Random) -> None:
    _ground(pen, (190, 200, 214), (112, 114, 122), 0.78)
    x = -0.02
    while x < 1:
        w, top = rng.uniform(0.14, 0.20), rng.uniform(0.08, 0.40)
        wall = rng.choice(((130, 138, 156), (150, 146, 158), (112, 124, 146)))
        pen.rect(x, top, x + w, 0.78, wall, outline=bool(pen.lines))
        for row in range(int((0.74 - top) / 0.09)):
            for column in (0.25, 0.62):
                spot = (x + w * column, top + 0.04 + row * 0.09)
                pen.rect(*spot, spot[0] + w * 0.16, spot[1] + 0.035, (250, 234, 160), outline=False)
        x += w + 0.01


_SCENES = dict(zip(SCENES, (_plain, _beach, _forest, _night, _snow, _desert, _city), strict=True))


def _styled(canvas: Image.Image, style: str, rng: random.Random) -> Image.Image:
    small = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    if style == "pixel art":
        blocks = canvas.resize((24, 24), Image.Resampling.BOX)
        levels = np.asarray(blocks, dtype=np.float32)
        levels = np.round(levels / 51) * 51
        return Image.fromarray(levels.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    if style == "watercolor":
        return _watercolor(small, rng)
    if style == "mosaic":
        return _mosaic(small, rng)
    if style == "neon":
        glow = np.asarray(small.filter(ImageFilter.GaussianBlur(2.2)), dtype=np.float32)
        return Image.fromarray(np.clip(np.asarray(small, dtype=np.float32) + 0.9 * glow, 0, 255).astype(np.uint8))
    return small


def _watercolor(small: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(32))
    soft = np.asarray(small.filter(ImageFilter.GaussianBlur(0.9)), dtype=np.float32)
    grain = Image.fromarray(noise.integers(0, 256, (14, 14), dtype=np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    wash = 0.24 + 0.30 * (np.asarray(grain, dtype=np.float32)[..., None] / 255)
    return Image.fromarray(np.clip(soft + (255 - soft) * wash, 0, 255).astype(np.uint8))


@functools.lru_cache(maxsize=64)
def _tiles(seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the tile number of each pixel and the mask of the joints, for one of 64 layouts of 16 x 16 tiles."""
    noise, n = np.random.default_rng(seed), 16
    step = SIZE / n
    centre = (np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1) + 0.5) * step
    centre = centre.reshape(-1, 2) + noise.uniform(-0.28 * step, 0.28 * step, (n * n, 2))
    pixel = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), -1).reshape(-1, 1, 2) + 0.5
    tile = np.abs(pixel - centre[None]).max(-1).argmin(1).reshape(SIZE, SIZE)
    joint = np.zeros((SIZE, SIZE), dtype=bool)
    joint[:, 1:] |= tile[:, 1:] != tile[:, :-1]
    joint[1:] |= tile[1:] != tile[:-1]
    return tile, joint


def _mosaic(small: Image.Image, rng: random.Random) -> Image.Image:
    tile, joint = _tiles(rng.randrange(64))
    pixels = np.asarray(small, dtype=np.float32).reshape(-1, 3)
    flat, count = tile.reshape(-1), np.bincount(tile.reshape(-1), minlength=256)
    mean = (
        np.stack([np.bincount(flat, pixels[:, c], minlength=256) for c in range(3)], -1) / np.maximum(count, 1)[:, None]
    )
    out = mean[flat].reshape(SIZE, SIZE, 3)
    out[joint] = out[joint] * 0.6 + np.array([120.0, 116.0, 110.0]) * 0.4
    return Image.fromarray(np.clip(out, 0, 255).astype(np.uint8))


def caption(picture: Picture, rng: random.Random, *, weapon_hints: float = 0.35, family_words: float = 0.08) -> str:
    """Write one caption of a picture; wording, synonyms, colours and omissions are drawn.

    Args:
        picture: Picture to describe.
        rng: Generator of the wording.
        weapon_hints: Share of lone weapons whose caption is an implicit hint.
        family_words: Share of things called by their family's word ("an animal").
    """
    lone = picture.things[0].name if len(picture.things) == 1 else ""
    if lone in WEAPON_HINTS and rng.random() < weapon_hints:
        subject = rng.choice(WEAPON_HINTS[lone])
    elif picture.things:
        subject = _joined(
            [_noun(t, rng, family_words, coloured=picture.style not in COLOURLESS) for t in picture.things], rng
        )
    else:
        subject = ""
    scene = _scene_words(picture, rng)
    if not subject:
        subject, scene = _empty(picture, rng), ""
    style = rng.choice(STYLE_PHRASES[picture.style])
    return style.format(f"{subject} {scene}".strip())


def _joined(nouns: list[str], rng: random.Random) -> str:
    rng.shuffle(nouns)
    return rng.choice((" and ", " and ", " next to ", " beside ")).join(nouns)


def _noun(thing: Thing, rng: random.Random, family_words: float, *, coloured: bool) -> str:
    if thing.name in INDIVIDUALS:
        return thing.name if rng.random() < 0.7 else f"{thing.name} the {INDIVIDUALS[thing.name]}"
    family = OBJECTS[thing.name]
    word = thing.name
    if family in FAMILY_WORDS and rng.random() < family_words:
        return article(family)
    if rng.random() < 0.25:
        word = rng.choice(SYNONYMS.get(thing.name, (thing.name,)))
    if coloured and thing.colour and rng.random() < 0.4:
        word = f"{thing.colour} {word}"
    return article(word)


def _scene_words(picture: Picture, rng: random.Random) -> str:
    said = 0.3 if picture.scene == "plain" else 0.85
    return rng.choice(SCENE_PHRASES[picture.scene]) if rng.random() < said else ""


def _empty(picture: Picture, rng: random.Random) -> str:
    phrase = rng.choice(SCENE_PHRASES[picture.scene])
    bare = {
        "at night": "the night sky",
        "under the stars": "the starry sky",
        "downtown": "downtown",
        "on a plain background": "a plain background",
    }
    place = bare.get(phrase) or phrase.removeprefix("on ").removeprefix("in ").removeprefix("at ")
    return rng.choice((place, place, f"{place} with nothing there", f"an empty scene {phrase}"))
