"""Stores of pictures that no model drew, for tests of what is read from them."""

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from erasure.eval.images.manifest import Manifest
from erasure.eval.images.png import as_png
from erasure.eval.images.store import ImageStore
from erasure.sampling import Pair


def store_of(folder: Path, images: Sequence[Image], pairs: Sequence[Pair], model: str = "") -> ImageStore:
    """Return a store that holds some pictures for some prompts and seeds."""
    manifest = Manifest(
        precision="float32",
        model=model,
        edit="",
        scheduler={"name": "DDIMScheduler"},
        steps=2,
        guidance_scale=4.0,
        negative_prompt="",
        images=tuple(pairs),
    )
    store = ImageStore(folder=folder / manifest.id, manifest=manifest)
    store.folder.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        store.path(row).write_bytes(as_png(image, {"manifest": manifest.id}))
    return store
