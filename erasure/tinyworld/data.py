"""Training pictures: drawn once in several processes, stored as one array, with new captions in every epoch."""

import hashlib
import logging
import os
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .vocabulary import INDIVIDUALS, OBJECTS, SCENES, STYLES
from .world import SIZE, Mix, Picture, caption, draw, sample_picture

logger = logging.getLogger(__name__)
THINGS: tuple[str, ...] = (*OBJECTS, *INDIVIDUALS)
"""Order of the oracle's multi-label outputs: objects, then individuals."""


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Drawn pictures with their descriptions.

    Attributes:
        pixels: (n, 64, 64, 3) uint8 in [0, 255].
        pictures: Description of each.
    """

    pixels: NDArray[np.uint8]
    pictures: list[Picture]

    def captions(self, rows: NDArray[np.int64], rng: random.Random) -> list[str]:
        """Write a fresh caption of each of the rows."""
        return [caption(self.pictures[i], rng) for i in rows]

    def truth(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Return things (n, 27) as 0 or 1, style indices (n,) and scene indices (n,)."""
        things = np.array([[t in p.names for t in THINGS] for p in self.pictures], dtype=np.float32)
        style = np.array([STYLES.index(p.style) for p in self.pictures])
        scene = np.array([SCENES.index(p.scene) for p in self.pictures])
        return things, style, scene


def pictures_of(n: int, seed: int, mix: Mix) -> list[Picture]:
    """Return n descriptions; the i-th depends on seed and i alone."""
    return [sample_picture(random.Random(f"{seed}:{i}"), mix) for i in range(n)]


def _draw_all(pictures: list[Picture]) -> NDArray[np.uint8]:
    out = np.empty((len(pictures), SIZE, SIZE, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        out[i] = np.asarray(draw(picture))
    return out


def drawings(
    n: int, seed: int, mix: Mix | None = None, *, folder: Path | None = None, workers: int | None = None
) -> Drawings:
    """Draw n pictures of a mix.

    Args:
        n: Number of pictures.
        seed: Seed of the pictures; equal arguments give equal pictures.
        mix: Distribution of the pictures; None: the training mix of the generator.
        folder: Folder that stores the array for the next call; None stores nothing.
        workers: Number of processes; None: the number of processors.
    """
    mix = mix or Mix()
    pictures = pictures_of(n, seed, mix)
    digest = hashlib.sha256(repr(mix).encode()).hexdigest()[:12]
    path = None if folder is None else folder / f"drawings-{n}-{seed}-{'-'.join(mix.without) or 'all'}-{digest}.npy"
    if path is not None and path.exists():
        return Drawings(pixels=np.load(path, mmap_mode="r"), pictures=pictures)
    workers = workers or os.cpu_count() or 1
    if n < 512 or workers == 1:
        pixels = _draw_all(pictures)
    else:
        with ProcessPoolExecutor(workers) as pool:
            pixels = np.concatenate(list(pool.map(_draw_all, [pictures[i : i + 500] for i in range(0, n, 500)])))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, pixels)
        part.replace(path)
    return Drawings(pixels=pixels, pictures=pictures)
