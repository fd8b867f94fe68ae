"""PNG files: an image with facts in its text fields, and whole batches written while the next one is sampled."""

import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from erasure.io.files import write_whole
from erasure.io.text import distinct_slug
from erasure.io.text import slug as text_slug
from erasure.progress import ProgressCounter
from erasure.sampling import Pair, SamplingSettings, sample_pairs

# The last twelve bytes of every complete PNG file: the empty chunk IEND with its checksum.
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def as_png(image: Image.Image, facts: Mapping[str, object] | None = None) -> bytes:
    """Return an image as PNG, with facts about it in its text fields."""
    text = PngInfo()
    for key, value in (facts or {}).items():
        text.add_itxt(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def facts_of(path: Path) -> dict[str, str] | None:
    """Return the text fields of a PNG file without decoding it; None if the file is missing or incomplete."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            facts = {str(key): str(value) for key, value in image.info.items()}
            file.seek(-len(_END), 2)
            return facts if file.read() == _END else None
    except OSError:  # no file, or no image that PIL can read
        return None


def slug(text: str) -> str:
    """Return words as a short part of a file name; other texts may have the same."""
    return text_slug(text, 48, "empty")


def file_name(prompt: str, seed: int) -> str:
    """Return the file name of an image, the same for no other prompt and seed."""
    return f"{distinct_slug(prompt, 48, 'empty')}-{seed}.png"


def sample_to_files(
    pipe: DiffusionPipeline,
    sampling: SamplingSettings,
    batches: Iterable[Sequence[tuple[Path, Pair]]],
    facts: Mapping[str, object],
    count: ProgressCounter,
) -> None:
    """Sample images batch by batch; the files of a batch are written, each atomically, while the next is sampled.

    Args:
        pipe: Pipeline with the edit applied.
        sampling: Sampling settings.
        batches: File, prompt and seed of each image.
        facts: Facts for the text fields of all files, beside prompt and seed.
        count: Counter of the images, raised after each batch.

    Raises:
        InputError: A file cannot be written.
    """
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for batch in batches:
            images = sample_pairs(pipe, [pair for _, pair in batch], sampling)
            count.add(len(batch))
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, batch, images, facts)
        if writing is not None:
            writing.result()


def _write(batch: Sequence[tuple[Path, Pair]], images: Sequence[Image.Image], facts: Mapping[str, object]) -> None:
    for (path, (prompt, seed)), image in zip(batch, images, strict=True):
        write_whole(path, as_png(image, {"prompt": prompt, "seed": seed, **facts}))
