"""Images beside a ledger: made once for each state of the model, and set side by side."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from erasure.errors import InputError
from erasure.io.files import make_folder, write_whole
from erasure.progress import OnProgress, ProgressCounter
from erasure.sampling import Pair, SamplingSettings, sample_pairs


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A folder of PNG files, one folder within for each state of the model.

    Attributes:
        folder: Where they are.
        sampler: How they are made; images made otherwise are other images.
    """

    folder: Path
    sampler: SamplingSettings

    def missing(self, state: str, pairs: Sequence[Pair]) -> list[Pair]:
        """Return the pairs that have no image yet, each once."""
        return [pair for pair in dict.fromkeys(pairs) if _opened(self.path(state, pair)) is None]

    def make(self, state: str, pipe: Any, pairs: Sequence[Pair], on_progress: OnProgress | None = None) -> None:
        """Make and keep the images that are missing; the pipeline must be in that state.

        Raises:
            InputError: The folder cannot be written.
        """
        missing = self.missing(state, pairs)
        make_folder(self.folder / state)
        size = self.sampler.batch_size
        batches = (missing[start : start + size] for start in range(0, len(missing), size))
        count = ProgressCounter(on_progress, len(missing), "images")
        files = ([(self.path(state, pair), pair) for pair in batch] for batch in batches)
        make_files(pipe, self.sampler, files, {"state": state, **self.sampler.as_settings()}, count)

    def get(self, state: str, pairs: Sequence[Pair]) -> list[Image.Image]:
        """Return images that were made.

        Raises:
            InputError: One was not, or cannot be read.
        """
        found = [_opened(self.path(state, pair)) for pair in pairs]
        for pair, image in zip(pairs, found, strict=True):
            if image is None:
                raise InputError(f"{self.path(state, pair)}: expected an image, got none. Make it first.")
        return [image for image in found if image is not None]

    def path(self, state: str, pair: Pair) -> Path:
        """Return where an image is: named for people by prompt and seed, made unique by all that decides it."""
        prompt, seed = pair
        sampler = self.sampler
        decides = json.dumps([prompt, seed, sampler.steps, sampler.guidance_scale, sampler.negative_prompt])
        unique = hashlib.sha256(decides.encode()).hexdigest()[:8]
        return self.folder / state / f"{slug(prompt)}-{seed}-{unique}.png"


def make_files(
    pipe: Any,
    sampler: SamplingSettings,
    batches: Iterable[Sequence[tuple[Path, Pair]]],
    facts: Mapping[str, object],
    count: ProgressCounter,
) -> None:
    """Make images batch by batch; the files of one batch are written, each whole, while the next is made.

    Args:
        pipe: The pipeline, with whatever is in force on it.
        sampler: How they are made.
        batches: Where each image goes, and its prompt and seed.
        facts: About all of them, for the text fields of the files, beside prompt and seed.
        count: Counter of the images, raised after each batch.

    Raises:
        InputError: A file cannot be written.
    """
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for batch in batches:
            images = sample_pairs(pipe, [pair for _, pair in batch], sampler)
            count.add(len(batch))
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, batch, images, facts)
        if writing is not None:
            writing.result()


def as_png(image: Image.Image, facts: Mapping[str, object] | None = None) -> bytes:
    """Return an image as PNG, with facts about it in its text fields."""
    text = PngInfo()
    for key, value in (facts or {}).items():
        text.add_itxt(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def slug(text: str) -> str:
    """Return words as a short part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "empty"


def side_by_side(
    columns: Sequence[str], rows: Sequence[str], images: Sequence[Sequence[Image.Image]], *, cell: int = 192
) -> Image.Image:
    """Draw images in a table with a heading above each column and a caption above each row.

    Args:
        columns: Headings; a long one goes on in further lines.
        rows: Captions.
        images: By row, then column.
        cell: Width of an image in pixels; small images are enlarged without smoothing.
    """
    gap, line_height, caption = 8, 18, 24
    headings = [_lines(heading, cell, 15) for heading in columns]
    head = 16 + line_height * max(map(len, headings), default=1)
    width = gap + len(columns) * (cell + gap)
    height = head + len(rows) * (caption + cell + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for at, lines in enumerate(headings):
        for down, text in enumerate(lines):
            _write_fitting(draw, (gap + at * (cell + gap), 9 + down * line_height), text, cell, 15)
    for down, (text, line) in enumerate(zip(rows, images, strict=True)):
        top = head + down * (caption + cell + gap)
        _write_fitting(draw, (gap, top + 4), text, width - 2 * gap, 13, "#555555")
        for at, image in enumerate(line):
            tall = max(1, round(cell * image.height / image.width))
            method = Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
            shown = image.convert("RGB").resize((cell, tall), method).crop((0, 0, cell, cell))
            sheet.paste(shown, (gap + at * (cell + gap), top + caption))
    return sheet


def _write(batch: Sequence[tuple[Path, Pair]], images: Sequence[Image.Image], facts: Mapping[str, object]) -> None:
    for (path, (prompt, seed)), image in zip(batch, images, strict=True):
        write_whole(path, as_png(image, {"prompt": prompt, "seed": seed, **facts}))


def _lines(text: str, width: int, size: int) -> list[str]:
    """Break a text between words so that each line has a width in pixels, as far as words are that short."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def _write_fitting(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, width: int, size: int, colour: str = "black"
) -> None:
    """Write a line, cut with an ellipsis to a width in pixels."""
    font = ImageFont.load_default(size)
    shown = text
    while shown and draw.textlength(shown + ("…" if shown != text else ""), font=font) > width:
        shown = shown[:-1]
    draw.text(at, shown + ("…" if shown != text else ""), fill=colour, font=font)


def _opened(path: Path) -> Image.Image | None:
    """Return an image, None if there is none or a crash cut it short."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError, OSError):
        return None
